"""The engine for methods that need a function per tensor: reads pieces, calls the method, rounds, writes.

A tensor belongs to one thread, so the bits depend on neither threads nor shards. Memory: pieces, whatever the number
and the size of the tensors (each says its own). Cost: every pass of a method reads its tensor again,
from the page cache where that holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array
from soupkit.checkpoint.hashing import ContentHash, hashed_slots
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import slots_of
from soupkit.errors import SoupkitError
from soupkit.merge.integers import settle
from soupkit.merge.methods import MergeMethod
from soupkit.merge.pieces import STRATUM, Draws, Pieces, row_length, rows_of_a_stratum
from soupkit.merge.policy import Sink, check_made
from soupkit.merge.pool import run_batches
from soupkit.merge.stream import Streamed, StreamOptions, threads_for
from soupkit.merge.tensor_pieces import BlockHash, Buffers, Source, TensorPieces

PIECE = STRATUM
"""Elements of a piece: few enough to stay in cache, enough that threads seldom wait for the interpreter."""
BATCH = 1 << 16
"""Elements that one task of the pool covers at least: tiny tensors are batched."""
DEFAULTS = StreamOptions()
Parameters = Callable[[str], dict[str, Any]]


@dataclass(frozen=True)
class Inputs:
    """What a method merges: ingredients, the base or None, and statistics (one file per ingredient, or none)."""

    ingredients: Sequence[Mapping[str, Array]]
    base: Mapping[str, Array] | None = None
    statistics: Sequence[Mapping[str, Array]] = ()


def merge_tensors(
    inputs: Inputs,
    method: MergeMethod,
    parameters: Parameters,
    sink: Sink,
    *,
    slots: Mapping[str, Slot],
    seed: int = 0,
    options: StreamOptions = DEFAULTS,
    advance: Callable[[int], None] = lambda _: None,
) -> Streamed:
    """Merge every tensor of `slots` by the method and hand it to `sink`; integers follow the policy of the options.

    parameters(tensor name) gives the method's keyword arguments, and "lambda" where it scales. The result lists content
    hashes of the ingredients, and after them of the base. Raises CheckpointError, CompatibilityError, RecipeError.
    """
    run = _Run(inputs, method, parameters, sink, slots, seed, options)
    order = sorted(slots, key=lambda name: (slots[name].dtype in FLOATING, -slots[name].num_elements))
    num_bytes = sum(slot.num_bytes for slot in slots.values())
    threads = 1 if method.pieces == "tensor" else threads_for(options, num_bytes, len(slots))
    run_batches(run.merge, _batches(order, slots), threads=threads, advance=advance)
    return run.result()


def _batches(order: Sequence[str], slots: Mapping[str, Slot]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name in order:
        batch.append(name)
        size += slots[name].num_elements + 256
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def piece_of(method: MergeMethod, slot: Slot, values: Mapping[str, Any]) -> int:
    """How many elements the method's pieces of a tensor hold: whole rows where it works on them, or is told to."""
    if method.pieces == "tensor":
        return max(1, slot.num_elements)
    length = row_length(slot.shape)
    return length * rows_of_a_stratum(length) if method.pieces == "row" or values.get("rows") else PIECE


class _Run:
    """One merge: what its threads share, and the buffers that each owns."""

    def __init__(
        self,
        inputs: Inputs,
        method: MergeMethod,
        parameters: Parameters,
        sink: Sink,
        slots: Mapping[str, Slot],
        seed: int,
        options: StreamOptions,
    ) -> None:
        self.method, self.parameters, self.sink, self.slots = method, parameters, sink, slots
        self.seed, self.options = seed, options
        read = [*inputs.ingredients, *([inputs.base] if inputs.base is not None else [])]
        hashes = [ContentHash(hashed_slots(each)) if options.hash else None for each in read]
        sources = [Source(each, place, tree) for place, (each, tree) in enumerate(zip(read, hashes, strict=True))]
        self.all_sources = sources
        self.ingredients = sources[: len(inputs.ingredients)]
        self.base = sources[-1] if inputs.base is not None else None
        self.statistics = [Source(each, place) for place, each in enumerate(inputs.statistics)]
        self.output_hash = ContentHash(slots)
        self.differing: set[str] = set()
        self._local = threading.local()

    def result(self) -> Streamed:
        inputs = [source.hashes.digest() for source in self.all_sources if source.hashes]
        output = self.output_hash.digest() if self.options.hash else ""
        return Streamed(inputs, output, sorted(self.differing))

    def merge(self, names: Sequence[str]) -> int:
        """Merge some tensors on the calling thread; returns the bytes written."""
        for name in names:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                if self.slots[name].dtype in FLOATING:
                    self._merge_floating(name)
                else:
                    self._merge_integers(name)
        return sum(self.slots[name].num_bytes for name in names)

    def _merge_floating(self, name: str) -> None:
        slot, values = self.slots[name], self.parameters(name)
        piece = piece_of(self.method, slot, values)
        buffers = self._buffers(piece)
        pieces = TensorPieces(
            name,
            slot,
            self.ingredients,
            self.base,
            piece=piece,
            buffers=buffers,
            keep_non_finite=self.options.non_finite == "keep",
        )
        scale = values.pop("lambda", 1.0)
        hashes = BlockHash(self.output_hash, name)
        start = 0
        for merged in self._call(name, pieces, values, piece):
            self._write(name, start, self._on_base(merged, pieces, scale), pieces, buffers, hashes)
            start += merged.size
        hashes.finish()
        assert start == slot.num_elements, (
            f"{self.method.name} yielded {start} of {slot.num_elements} elements of {name}"
        )

    def _buffers(self, size: int) -> Buffers:
        """This thread's buffers; those for a tensor with longer rows are not kept."""
        if size <= PIECE:
            if not hasattr(self._local, "buffers"):
                self._local.buffers = Buffers(PIECE, len(self.ingredients), self.options.accumulate)
            own: Buffers = self._local.buffers
            return own
        return Buffers(size, len(self.ingredients), self.options.accumulate)

    def _call(self, name: str, pieces: Pieces, values: dict[str, Any], piece: int) -> Iterator[Array]:
        """The method's generator; its errors get the tensor's name."""
        if "draws" in self.method.asks:
            values["draws"] = Draws(self.seed, name)
        if "statistics" in self.method.asks:
            values["statistics"] = self._statistics(name, piece)
        elif "grams" in self.method.asks:
            known = self.statistics and all(name in source.tensors for source in self.statistics)
            values["grams"] = [source.tensors[name] for source in self.statistics] if known else None
        try:
            yield from self.method.function(pieces, **values)
        except SoupkitError as error:
            if repr(name) in error.message:
                raise
            raise type(error)(f"tensor {name!r}: {error.message}", hint=error.hint) from error

    def _statistics(self, name: str, piece: int) -> Pieces | None:
        if not self.statistics or any(name not in source.tensors for source in self.statistics):
            return None
        slot = slots_of(self.statistics[0].tensors)[name]
        buffers = Buffers(piece, len(self.statistics), self.options.accumulate)
        return TensorPieces(name, slot, self.statistics, None, piece=piece, buffers=buffers, keep_non_finite=False)

    def _on_base(self, merged: Array, pieces: TensorPieces, scale: float) -> Array:
        """base + λ · merged task vector; merged weights stay as they are."""
        if self.base is None:
            return merged
        if scale != 1:
            merged = merged * scale
        result: Array = np.add(merged, pieces.base_values(merged.size))
        return result

    def _write(
        self, name: str, start: int, merged: Array, pieces: TensorPieces, buffers: Buffers, hashes: BlockHash
    ) -> None:
        dtype = NUMPY_DTYPES[self.slots[name].dtype]
        copied = pieces.restore(start, merged)
        result = buffers.out[: merged.size * dtype.itemsize].view(dtype)
        buffers.rounding.into(merged, result)
        if self.options.non_finite == "error":
            check_made(name, merged, result, by=self.method.name, copied=copied)
        if self.options.hash:
            hashes.update(result)
        self.sink.write(name, start, result)

    def _merge_integers(self, name: str) -> None:
        """Integers and booleans: copied when all ingredients (the base aside) hold the same, else by policy."""
        output = self.output_hash if self.options.hash else None
        differs = settle(
            name,
            self.slots[name],
            self.all_sources,
            self.ingredients,
            self.sink,
            policy=self.options.integers,
            output=output,
            base=self.base,
        )
        if differs:
            self.differing.add(name)
