"""The engine for methods that need a function per tensor: reads pieces, calls the method, rounds, writes.

A tensor belongs to one thread, so the bits depend on neither threads nor shards. Memory: pieces, whatever the
number and the size of the tensors (each says its own). Cost: every pass of a method reads its tensor again,
from the page cache where that holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from soupkit.checkpoint.dtypes import FLOATING, Array
from soupkit.checkpoint.header import Slot
from soupkit.errors import SoupkitError
from soupkit.jsons import Json, JsonView
from soupkit.merge.methods import MergeMethod
from soupkit.merge.pieces import STRATUM, Draws, Pieces, row_length, rows_of_a_stratum
from soupkit.merge.policy import Sink, check_made
from soupkit.merge.sources import Source
from soupkit.merge.tensor_pieces import Buffers, TensorPieces
from soupkit.merge.writer import DEFAULTS, Streamed, StreamOptions, Unit, Writer, threads_for

PIECE = STRATUM
"""Elements of a piece: few enough to stay in cache, enough that threads seldom wait for the interpreter."""
BATCH = 1 << 16
"""Elements that one task of the pool covers at least: tiny tensors are batched."""
Parameters = Callable[[str], Json]


@dataclass(frozen=True)
class Inputs:
    """What a method merges: ingredients, the base or None, and statistics (one file per ingredient, or
    none)."""

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
    """Merge every tensor of `slots` by the method and hand it to `sink`; integers follow the policy of the
    options.

    parameters(tensor name) gives the method's keyword arguments, and "lambda" where it scales. The result
    lists content hashes of the ingredients, and after them of the base. Raises CheckpointError,
    CompatibilityError, RecipeError.
    """
    read = [*inputs.ingredients, *([inputs.base] if inputs.base is not None else [])]
    writer = Writer(read, sink, slots, options)
    merge = _Merge(writer, inputs, method, parameters, seed)
    order = sorted(slots, key=lambda name: (slots[name].dtype in FLOATING, -slots[name].num_elements))
    num_bytes = sum(slot.num_bytes for slot in slots.values())
    writer.run(
        [Unit(name, 0, slots[name].num_elements) for name in order],
        merge.merge,
        batch=BATCH,
        threads=1 if method.pieces == "tensor" else threads_for(options, num_bytes, len(slots)),
        advance=advance,
    )
    return writer.found()


def piece_of(method: MergeMethod, slot: Slot, values: JsonView) -> int:
    """How many elements the method's pieces of a tensor hold: whole rows where it works on them, or is told
    to."""
    if method.pieces == "tensor":
        return max(1, slot.num_elements)
    length = row_length(slot.shape)
    return length * rows_of_a_stratum(length) if method.pieces == "row" or values.get("rows") else PIECE


class _Merge:
    """One merge by a method, and the buffers that each of its threads owns."""

    def __init__(
        self, writer: Writer, inputs: Inputs, method: MergeMethod, parameters: Parameters, seed: int
    ) -> None:
        self.writer, self.method, self.parameters, self.seed = writer, method, parameters, seed
        self.ingredients = writer.sources[: len(inputs.ingredients)]
        self.base = writer.sources[-1] if inputs.base is not None else None
        self.statistics = [Source(each, place) for place, each in enumerate(inputs.statistics)]
        self._local = threading.local()

    def merge(self, unit: Unit) -> None:
        """Merge a tensor on the calling thread."""
        name = unit.name
        slot = self.writer.slots[name]
        if slot.dtype not in FLOATING:
            self.writer.settle(name, self.ingredients, self.base)
            return
        values = self.parameters(name)
        piece = piece_of(self.method, slot, values)
        buffers = self._buffers(piece)
        pieces = TensorPieces(
            name,
            slot,
            self.ingredients,
            self.base,
            piece=piece,
            buffers=buffers,
            keep_non_finite=self.writer.options.non_finite == "keep",
        )
        scale = values.pop("lambda", 1.0)
        hashes = self.writer.hashing(unit)
        start = 0
        for merged in self._call(name, pieces, values, piece):
            made = self._on_base(merged, pieces, scale)
            copied = pieces.restore(start, made)
            self.writer.write(name, start, made, buffers.room, hashes, self._judge(name, made, copied))
            start += merged.size
        hashes.finish()
        assert start == slot.num_elements, (
            f"{self.method.name} yielded {start} of {slot.num_elements} elements of {name}"
        )

    def _buffers(self, size: int) -> Buffers:
        """This thread's buffers; those for a tensor with longer rows are not kept."""
        if size <= PIECE:
            if not hasattr(self._local, "buffers"):
                self._local.buffers = Buffers(PIECE, len(self.ingredients), self.writer.options.accumulate)
            own: Buffers = self._local.buffers
            return own
        return Buffers(size, len(self.ingredients), self.writer.options.accumulate)

    def _call(self, name: str, pieces: Pieces, values: Json, piece: int) -> Iterator[Array]:
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
        slot = self.statistics[0].slots[name]
        buffers = Buffers(piece, len(self.statistics), self.writer.options.accumulate)
        return TensorPieces(
            name, slot, self.statistics, None, piece=piece, buffers=buffers, keep_non_finite=False
        )

    def _on_base(self, merged: Array, pieces: TensorPieces, scale: float) -> Array:
        """base + λ · merged task vector; merged weights stay as they are."""
        if self.base is None:
            return merged
        if scale != 1:
            merged = merged * scale
        result: Array = np.add(merged, pieces.base_values(merged.size))
        return result

    def _judge(self, name: str, made: Array, copied: Array | None) -> Callable[[Array], None]:
        return lambda written: check_made(name, made, written, by=self.method.name, copied=copied)
