"""Integers and booleans: never averaged, but copied where all agree, and settled by one policy where they do
not.

The decision is one for the whole tensor, whatever the chunks, the threads, the shards or the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.hashing import ContentHash
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import name_of
from soupkit.errors import CompatibilityError
from soupkit.merge.policy import Integers, Sink
from soupkit.merge.sources import BlockHash, Source

CHUNK = 1 << 15
"""Elements compared at a time."""
BYTES = ("U8", "I8")


def is_counter(slot: Slot) -> bool:
    """Whether the largest of several values means something: numbers and vectors do; tables and bytes are
    codes."""
    return slot.num_elements <= 1 or (len(slot.shape) == 1 and slot.dtype not in BYTES)


def settle(
    name: str,
    slot: Slot,
    sources: Sequence[Source],
    voters: Sequence[Source],
    sink: Sink,
    *,
    policy: Integers,
    output: ContentHash | None,
    base: Source | None = None,
) -> bool:
    """Write tensor `name` to `sink`: the first voter's values where all voters agree, else by the policy.

    sources: all that are read, for their hashes; voters: those that count, in order. base: what the voters
    were made from, which counts only for codes under the policy "auto". Returns whether the voters differ.
    Memory: a chunk of each of two sources; one more pass for "zero". Raises CompatibilityError for codes that
    differ under "auto", and for anything that differs under "error".
    """
    if policy == "auto" and not is_counter(slot):
        policy, voters = "error", [*voters, *([base] if base else [])]
    elif policy == "auto":
        policy = "max"
    chunks = _chunks(name, slot, sources, voters, policy)
    differs = False
    if policy == "zero":
        differs = sum(different for _, _, different in chunks) > 0  # all are read, for their hashes
        silent = [replace(voters[0], hashes=None)]
        chunks = _chunks(name, slot, silent, silent, policy)
    tree = BlockHash(output, name)
    for start, values, different in chunks:
        if policy == "zero" and differs:
            values[:] = 0
        differs = differs or different
        tree.update(values)
        sink.write(name, start, values)
    tree.finish()
    return differs


def _chunks(
    name: str, slot: Slot, sources: Sequence[Source], voters: Sequence[Source], policy: Integers
) -> Iterator[tuple[int, Array, bool]]:
    """(first element, values, whether the voters differ in them), chunk by chunk; hashes what is read."""
    trees = [source.hashing(name) for source in sources]
    counted = {id(voter) for voter in voters}
    for start in range(0, slot.num_elements, CHUNK):
        size = min(CHUNK, slot.num_elements - start)
        result, differs = np.empty(0, NUMPY_DTYPES[slot.dtype]), False
        for source, tree in zip(sources, trees, strict=True):
            values = source.read(name, start, size)
            tree.update(values)
            if id(source) not in counted:
                continue
            if not result.size:
                result = values
            elif not np.array_equal(values, result):
                differs = True
                result = _agreed(result, values, policy, name=name, slot=slot, source=source)
        yield start, result, differs
    for tree in trees:
        tree.finish()


def _agreed(
    result: Array, values: Array, policy: Integers, *, name: str, slot: Slot, source: Source
) -> Array:
    """What the policy makes of values that differ from those before them."""
    if policy == "error":
        raise CompatibilityError(
            f"{name_of(source.tensors, source.position)}: integer tensor {name!r} differs between "
            f"ingredients, and integers ({slot.dtype} {list(slot.shape)}) have no mean",
            hint="unless weights are packed in it, choose what becomes of it: --integers first, max or zero",
        )
    return np.maximum(result, values) if policy == "max" else result
