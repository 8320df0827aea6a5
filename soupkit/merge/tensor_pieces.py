"""Pieces of one tensor as they lie in checkpoints: read, converted, hashed on the first pass, base subtracted.

Shape suffixes: K ingredients, N elements of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array, Rounding
from soupkit.checkpoint.hashing import BLOCK, ContentHash
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import read_chunk, slots_of
from soupkit.merge.pieces import SAMPLE, SAMPLED, row_length
from soupkit.merge.policy import non_finite

RUN = 1 << 7
"""Entries that are read at one place for a sample."""


@dataclass(frozen=True)
class Source:
    """A checkpoint that is read: its tensors, and the hash that its bytes go into (None: not hashed)."""

    tensors: Mapping[str, Array]
    position: int
    hashes: ContentHash | None = None


class Buffers:
    """What one thread reuses for pieces of up to `size` elements of `num_sources` checkpoints."""

    def __init__(self, size: int, num_sources: int, dtype: Literal["float64", "float32"]) -> None:
        self.size = size
        self.raw = np.empty(size * 8, np.uint8)
        self.values = np.empty(size * num_sources, dtype)
        self.base = np.empty(size, dtype)
        self.finite = np.empty(size * num_sources, np.bool_)
        self.out = np.empty(size * 8, np.uint8)
        self.rounding = Rounding(size)


class BlockHash:
    """Feeds one tensor's bytes, given in order in pieces of any size, to a content hash block by block."""

    def __init__(self, hashes: ContentHash, name: str) -> None:
        self._hashes, self._name = hashes, name
        self._block, self._filled = 0, 0
        self._digest = xxhash.xxh3_128()

    def update(self, values: Array) -> None:
        """Take the next elements."""
        start = 0
        while start < values.size:
            part = values[start : start + BLOCK - self._filled]
            self._digest.update(part.view(np.uint8).data)
            self._filled += part.size
            start += part.size
            if self._filled == BLOCK:
                self.finish()

    def finish(self) -> None:
        """The tensor, or a block of it, is complete."""
        if self._filled:
            self._hashes.add(self._name, self._block, self._digest.digest())
            self._block, self._filled = self._block + 1, 0
            self._digest = xxhash.xxh3_128()


class TensorPieces:
    """The pieces of tensor `name` of K sources, minus `base` where there is one (task vectors).

    Values that are not finite in any source read as zero; those that all sources hold alike (masks of −∞) are put back
    by `restore`, and any other raises CheckpointError unless they are kept. Reuses `buffers` from piece to piece.
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
        self._hashes = [BlockHash(source.hashes, name) if source.hashes else None for source in self._read_sources]
        self._dtypes = [NUMPY_DTYPES[slots_of(source.tensors)[name].dtype] for source in self._read_sources]
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
                if hashes:
                    hashes.finish()

    def sample(self) -> Array | None:
        """Short runs of entries from places all over a large tensor of checkpoints, which can be read anywhere."""
        if self.num_elements < SAMPLED or not all(isinstance(each.tensors, Checkpoint) for each in self._read_sources):
            return None
        values = np.empty((len(self._read_sources), SAMPLE))
        for place, row in enumerate(values):
            raw = np.empty(RUN, self._dtypes[place])
            for number, start in enumerate(range(0, SAMPLE, RUN)):
                at = number * (self.num_elements - RUN) // (SAMPLE // RUN)
                read_chunk(self._read_sources[place].tensors, self._name, at, raw)
                row[start : start + RUN] = raw
        if self._base:
            values = values[:-1] - values[-1]
        return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    def base_values(self, size: int) -> Array:
        """The base's values of the piece that was read last."""
        return self._buffers.base[:size]

    def restore(self, start: int, merged: Array) -> Array | None:
        """Put the values back that no arithmetic can make, those that are not finite in the sources; returns where."""
        if start not in self._patches:
            return None
        places, values = self._patches[start]
        merged[places] = values
        return places

    def _load(self, start: int, size: int) -> Array:
        num = self.num_ingredients
        values_KN: Array = self._buffers.values[: num * size].reshape(num, size)
        rows = [*values_KN, *([self._buffers.base[:size]] if self._base else [])]
        for place, row in enumerate(rows):
            raw = self._read(place, start, size)
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

    def _read(self, place: int, start: int, size: int) -> Array:
        dtype = self._dtypes[place]
        raw: Array = self._buffers.raw[: size * dtype.itemsize].view(dtype)
        read_chunk(self._read_sources[place].tensors, self._name, start, raw)
        hashes = self._hashes[place]
        if hashes and self._first:
            hashes.update(raw)
        return raw

    def _explain(self, start: int, places: Array, size: int) -> tuple[Array, Array]:
        """(places, values to put there), or the error that names the ingredient."""
        found = []
        for place, source in enumerate(self._read_sources):
            raw = np.empty(size, self._dtypes[place])
            read_chunk(source.tensors, self._name, start, raw)
            found.append(raw[places].astype(np.float64))
        if not np.isfinite(found[0]).any() and all(np.array_equal(values, found[0]) for values in found):
            return places, found[0]
        for source, values in zip(self._read_sources, found, strict=True):
            if not self._keep and not np.isfinite(values).all():
                raise non_finite(source.tensors, source.position, self._name)
        return places, np.mean(found[: self.num_ingredients], axis=0)
