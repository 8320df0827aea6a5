"""The data plane: combine checkpoints chunk by chunk, in bounded memory, without torch.

Work is cut into the blocks of the content hash, so every input is read once, and hashed while it is in cache.
Memory: threads × 5 small buffers, whatever the number or the size of the ingredients. Cost: linear in bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xxhash

from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array, Rounding
from soupkit.checkpoint.hashing import BLOCK, ContentHash, hashed_slots, num_blocks
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import read_chunk, slots_of
from soupkit.merge.integers import settle
from soupkit.merge.mixture import Mixture
from soupkit.merge.policy import Integers, Sink, non_finite, overflow
from soupkit.merge.pool import run_batches
from soupkit.merge.tensor_pieces import Source
from soupkit.world import available_cores

CHUNK = 1 << 17
"""Elements handled at a time: few enough to stay in cache, enough that threads seldom wait for the interpreter."""
MOST_THREADS = 8
"""More only wait for memory, and each has buffers of its own (about 6 MB)."""
_BATCH = 1 << 22
"""Bytes that one task of the pool covers at least: tiny tensors are batched."""
_TINY = 1 << 15
"""Tensors of fewer bytes on average spend their time in the interpreter, where a second thread only gets in the way."""

Ingredient = Mapping[str, Array]


@dataclass(frozen=True)
class StreamOptions:
    """How to combine: see `soupkit.recipe.shared.WeightOptions`; chunk is in elements and divides BLOCK."""

    integers: Integers = "auto"
    non_finite: Literal["error", "keep"] = "error"
    accumulate: Literal["float64", "float32"] = "float64"
    threads: int = 0
    chunk: int = CHUNK
    hash: bool = True


@dataclass
class Streamed:
    """What a stream found out: content hashes of the used ingredients and of the result, integers that differed."""

    inputs: list[str] = field(default_factory=list)
    output: str = ""
    differing_integers: list[str] = field(default_factory=list)


def stream(
    ingredients: Sequence[Ingredient],
    mixture: Mixture,
    sink: Sink,
    *,
    slots: Mapping[str, Slot],
    options: StreamOptions = StreamOptions(),
    advance: Callable[[int], None] = lambda _: None,
) -> Streamed:
    """Combine ingredients into the tensors `slots` and hand them to `sink`: w = Σ_k c_k w_k / divisor.

    Sums in float64, in the order of the ingredients' names, one rounding into the slot's dtype; integers by policy.
    The bits do not depend on threads, chunks, shards, tensor order or the order of the ingredients. `advance` is told
    the bytes written. Raises CompatibilityError (integers that differ), CheckpointError (non-finite results, files that
    change).
    """
    assert 0 < options.chunk <= BLOCK
    run = _Run(ingredients, mixture, sink, slots, options)
    units = sorted(_units(slots), key=lambda unit: slots[unit[0]].dtype in FLOATING)
    num_bytes = sum(slot.num_bytes for slot in slots.values())
    threads = threads_for(options, num_bytes, len(units))
    run_batches(run.combine, _batches(units, slots), threads=threads, advance=advance)
    return run.result()


def threads_for(options: StreamOptions, num_bytes: int, num_units: int) -> int:
    """How many threads pay: one for tiny tensors, few for large ones."""
    return 1 if num_bytes < _TINY * num_units else min(options.threads or available_cores(), MOST_THREADS)


def _units(slots: Mapping[str, Slot]) -> Iterator[tuple[str, int]]:
    """Blocks of floating tensors; integers are settled as a whole, which is one unit."""
    for name, slot in slots.items():
        blocks = num_blocks(slot)
        yield from ((name, block) for block in range(blocks if slot.dtype in FLOATING else min(1, blocks)))


def _batches(units: Sequence[tuple[str, int]], slots: Mapping[str, Slot]) -> Iterator[list[tuple[str, int]]]:
    """Group units so that the pool is not asked once per tiny tensor."""
    batch: list[tuple[str, int]] = []
    size = 0
    for name, block in units:
        batch.append((name, block))
        size += min(BLOCK * 4, slots[name].num_bytes) + 4096
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Run:
    """One stream: what its threads share, and the buffers that each owns."""

    def __init__(
        self,
        ingredients: Sequence[Ingredient],
        mixture: Mixture,
        sink: Sink,
        slots: Mapping[str, Slot],
        options: StreamOptions,
    ) -> None:
        self.ingredients = ingredients
        self.mixture = mixture
        self.sink = sink
        self.slots = slots
        self.options = options
        self.input_slots = [slots_of(ingredient) for ingredient in ingredients]
        self.hashes = [ContentHash(hashed_slots(ingredient)) for ingredient in ingredients]
        self.sources = [
            Source(each, place, self.hashes[place] if options.hash else None) for place, each in enumerate(ingredients)
        ]
        self.output_hash = ContentHash(slots)
        self.differing: set[str] = set()
        self.order = sorted(range(len(ingredients)), key=lambda k: mixture.ingredients[k])
        self._local = threading.local()

    def result(self) -> Streamed:
        if not self.options.hash:
            return Streamed(differing_integers=sorted(self.differing))
        inputs = [hashes.digest() for hashes in self.hashes]
        return Streamed(inputs, self.output_hash.digest(), sorted(self.differing))

    def combine(self, batch: Sequence[tuple[str, int]]) -> int:
        """Combine some blocks on the calling thread; returns the bytes written."""
        if not hasattr(self._local, "buffers"):
            self._local.buffers = _Buffers(self.options)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return sum(
                self._combine_block(name, block, self._local.buffers)
                if self.slots[name].dtype in FLOATING
                else self._settle(name)
                for name, block in batch
            )

    def _combine_block(self, name: str, block: int, buffers: _Buffers) -> int:
        slot = self.slots[name]
        begin = block * BLOCK
        end = min(begin + BLOCK, slot.num_elements)
        digests = [xxhash.xxh3_128() for _ in range(len(self.ingredients) + 1)] if self.options.hash else []
        column = self.mixture.column(name)
        for start in range(begin, end, self.options.chunk):
            size = min(self.options.chunk, end - start)
            values = self._average(name, start, size, column, buffers, digests)
            if digests:
                digests[-1].update(values.view(np.uint8).data)
            self.sink.write(name, start, values)
        for hashes, digest in zip([*self.hashes, self.output_hash], digests, strict=False):
            hashes.add(name, block, digest.digest())
        return (end - begin) * NUMPY_DTYPES[slot.dtype].itemsize

    def _read(self, k: int, name: str, start: int, size: int, raw: Array, digests: list[Any]) -> Array:
        dtype = NUMPY_DTYPES[self.input_slots[k][name].dtype]
        values = raw[: size * dtype.itemsize].view(dtype)
        read_chunk(self.ingredients[k], name, start, values)
        if digests:
            digests[k].update(raw[: values.nbytes])
        return values

    def _average(self, name: str, start: int, size: int, column: Array, buffers: _Buffers, digests: list[Any]) -> Array:
        """Σ_k c_k w_k / divisor for one chunk of one floating tensor."""
        total, product = buffers.sums(self.slots[name].dtype, size)
        for k in self.order:
            values = self._read(k, name, start, size, buffers.raw, digests)
            first = k == self.order[0]
            if first or column[k] != 0:
                _accumulate(total, values, column[k], product, first=first)
        if self.mixture.divisor != 1:
            np.divide(total, self.mixture.divisor, out=total)
        dtype = NUMPY_DTYPES[self.slots[name].dtype]
        result = buffers.out[: size * dtype.itemsize].view(dtype)
        buffers.rounding.into(total, result)
        if self.options.non_finite == "error" and not np.isfinite(result).all():
            self._explain_non_finite(name, start, result, column)
        return result

    def _settle(self, name: str) -> int:
        """Integers and booleans: copied when all used ingredients hold the same, else by policy."""
        slot, column = self.slots[name], self.mixture.column(name)
        voters = [source for source, coefficient in zip(self.sources, column, strict=True) if coefficient != 0]
        output = self.output_hash if self.options.hash else None
        voters = voters or self.sources[:1]
        if settle(name, slot, self.sources, voters, self.sink, policy=self.options.integers, output=output):
            self.differing.add(name)
        return slot.num_bytes

    def _explain_non_finite(self, name: str, start: int, result: Array, column: Array) -> None:
        """Non-finite values that every used ingredient holds alike (masks of −∞) stay; any other is an error."""
        bad = ~np.isfinite(result)
        used = [k for k in range(len(column)) if column[k] != 0]
        chunks = []
        for k in used:
            chunk = np.empty(result.size, NUMPY_DTYPES[self.input_slots[k][name].dtype])
            read_chunk(self.ingredients[k], name, start, chunk)
            chunks.append(chunk[bad].astype(np.float64))
        if not np.isfinite(chunks[0]).any() and all(np.array_equal(chunk, chunks[0]) for chunk in chunks):
            result[bad] = chunks[0]
            return
        for k, chunk in zip(used, chunks, strict=True):
            if not np.isfinite(chunk).all():
                raise non_finite(self.ingredients[k], k, name)
        raise overflow(name, self.slots[name].dtype)


class _Buffers:
    """What one thread reuses for every chunk."""

    def __init__(self, options: StreamOptions) -> None:
        self.raw = np.empty(options.chunk * 8, np.uint8)
        self.out = np.empty(options.chunk * 8, np.uint8)
        self.rounding = Rounding(options.chunk)
        self._options = options
        self._sums: dict[Any, tuple[Array, Array]] = {}

    def sums(self, dtype: str, size: int) -> tuple[Array, Array]:
        """Room for a sum and a product. Sums that are written as float64 are kept in the machine's long double:
        three times a float64 is no float64, and three equal models must give themselves."""
        wide = dtype == "F64" and self._options.accumulate == "float64"
        kind = np.longdouble if wide else self._options.accumulate
        if kind not in self._sums:
            self._sums[kind] = (np.empty(self._options.chunk, kind), np.empty(self._options.chunk, kind))
        total, product = self._sums[kind]
        return total[:size], product[:size]


def _accumulate(total: Array, values: Array, coefficient: float, product: Array, *, first: bool) -> None:
    """total (+)= coefficient · values; ones are not multiplied, zeros of the first ingredient only clear."""
    if coefficient == 0:
        total[:] = 0
    elif coefficient == 1 and first:
        np.copyto(total, values, casting="unsafe")
    elif coefficient == 1 and values.dtype.itemsize >= 4:
        np.add(total, values, out=total, casting="unsafe")
    else:
        np.copyto(product, values, casting="unsafe")
        if coefficient != 1:
            np.multiply(product, coefficient, out=product)
        np.copyto(total, product) if first else np.add(total, product, out=total)
