"""Pieces of one tensor as they lie in checkpoints: read, converted, hashed on the first pass, base
subtracted.

Shape suffixes: K ingredients, N elements of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.header import Slot
from soupkit.merge.pieces import SAMPLE, SAMPLED, row_length
from soupkit.merge.sources import Source, held, is_mask, refuse_non_finite
from soupkit.merge.writer import Room

RUN = 1 << 7
"""Entries that are read at one place for a sample."""


class Buffers:
    """What one thread reuses for pieces of up to `size` elements of `num_sources` checkpoints."""

    def __init__(self, size: int, num_sources: int, dtype: Literal["float64", "float32"]) -> None:
        self.room = Room(size)
        self.values = np.empty(size * num_sources, dtype)
        self.base = np.empty(size, dtype)
        self.finite = np.empty(size * num_sources, np.bool_)


class TensorPieces:
    """The pieces of tensor `name` of K sources, minus `base` where there is one (task vectors).

    Values that are not finite in any source read as zero; those that all sources hold alike (masks of −∞) are
    put back by `restore`, and any other raises CheckpointError unless they are kept. Reuses `buffers` from
    piece to piece.
    """

    def __init__(
        self,
        name: str,
        slot: Slot,
        sources: Sequence[Source],
        base: Source | None,
        *,
        piece: int,
        buffers: Buffers,
        keep_non_finite: bool,
    ) -> None:
        self._name, self._slot, self._sources, self._base = name, slot, sources, base
        self._piece, self._buffers, self._keep = piece, buffers, keep_non_finite
        self._hashes = [source.hashing(name) for source in self._read_sources]
        self._patches: dict[int, tuple[Array, Array]] = {}
        self._first = True

    @property
    def _read_sources(self) -> list[Source]:
        return [*self._sources, *([self._base] if self._base else [])]

    @property
    def num_ingredients(self) -> int:
        return len(self._sources)

    @property
    def num_elements(self) -> int:
        return self._slot.num_elements

    @property
    def row_length(self) -> int:
        return row_length(self._slot.shape)

    def __iter__(self) -> Iterator[Array]:
        for start in range(0, self.num_elements, self._piece):
            yield self._load(start, min(self._piece, self.num_elements - start))
        if self._first:
            self._first = False
            for hashes in self._hashes:
                hashes.finish()

    def sample(self) -> Array | None:
        """Short runs of entries from places all over a large tensor of checkpoints, which can be read
        anywhere."""
        if self.num_elements < SAMPLED or not all(
            isinstance(each.tensors, Checkpoint) for each in self._read_sources
        ):
            return None
        values = np.empty((len(self._read_sources), SAMPLE))
        for place, row in enumerate(values):
            for number, start in enumerate(range(0, SAMPLE, RUN)):
                at = number * (self.num_elements - RUN) // (SAMPLE // RUN)
                row[start : start + RUN] = self._read_sources[place].read(self._name, at, RUN)
        if self._base:
            values = values[:-1] - values[-1]
        return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    def base_values(self, size: int) -> Array:
        """The base's values of the piece that was read last."""
        return self._buffers.base[:size]

    def restore(self, start: int, merged: Array) -> Array | None:
        """Put the values back that no arithmetic can make, those that are not finite in the sources; returns
        where."""
        if start not in self._patches:
            return None
        places, values = self._patches[start]
        merged[places] = values
        return places

    def _load(self, start: int, size: int) -> Array:
        num = self.num_ingredients
        values_KN: Array = self._buffers.values[: num * size].reshape(num, size)
        rows = [*values_KN, *([self._buffers.base[:size]] if self._base else [])]
        for source, hashes, row in zip(self._read_sources, self._hashes, rows, strict=True):
            raw = source.read(self._name, start, size, self._buffers.room.raw)
            if self._first:
                hashes.update(raw)
            np.copyto(row, raw, casting="unsafe")
        if self._base:
            np.subtract(values_KN, rows[-1], out=values_KN)
        if self._first:
            finite = np.isfinite(values_KN, out=self._buffers.finite[: num * size].reshape(num, size))
            if not finite.all():
                self._patches[start] = self._explain(start, np.flatnonzero(~finite.all(axis=0)), size)
        if start in self._patches:
            values_KN[:, self._patches[start][0]] = 0
            rows[-1][self._patches[start][0]] = 0
        return values_KN

    def _explain(self, start: int, places: Array, size: int) -> tuple[Array, Array]:
        """(places, values to put there), or the error that names the ingredient."""
        found = held(self._read_sources, self._name, start, size, places)
        if is_mask(found):
            return places, found[0]
        if not self._keep:
            refuse_non_finite(self._read_sources, self._name, found)
        return places, np.mean(found[: self.num_ingredients], axis=0)
