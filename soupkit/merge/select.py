"""The k largest of a tensor's entries, exactly k, without holding or sorting the tensor.

A radix search over the bits of non-negative float64 numbers, which order as the numbers do: histograms narrow the k-th
largest down to a bin, and only the bin's few members are kept and partitioned. Two or three passes over the pieces.

Shape suffixes: R rows (one selection each), N elements of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.pieces import Pieces

MOST_CANDIDATES = 1 << 20
"""Candidates that may be held for one selection (8 MB): with more, another histogram narrows them down."""
_DIGIT = 16
Keys = Callable[[Array], Array]


@dataclass(frozen=True)
class Cut:
    """What belongs to the largest of each row: all above value[R], and the first equal[R] of those at it (−1: all)."""

    value: Array
    equal: Array


class Selected:
    """Turns a cut into masks, piece by piece from the first on: ties go to the lower index."""

    def __init__(self, cut: Cut) -> None:
        self._value = cut.value[:, None]
        self._left = cut.equal.copy()

    def mask(self, keys: Array) -> Array:
        """(R, N) booleans: which of these keys are among the largest."""
        mask: Array = keys >= self._value
        for row in np.flatnonzero(self._left >= 0):
            ties = np.flatnonzero(keys[row] == self._value[row])
            mask[row, ties[self._left[row] :]] = False
            self._left[row] -= min(self._left[row], ties.size)
        return mask


def magnitude(piece: Array) -> Array:
    """|x| as float64."""
    keys: Array = np.abs(piece).astype(np.float64, copy=False)
    return keys


def cut(pieces: Pieces, counts: Sequence[int], keys: Keys = magnitude) -> Cut:
    """Where the counts[R] largest of the R rows of keys(piece) end. Keys are ≥ 0 and finite.

    Memory: one piece and its keys, and at most MOST_CANDIDATES numbers. Cost: 2 passes for tensors of up to a few
    million elements, 3 to 5 for larger ones and for those that are nearly constant.
    """
    search = _Search(pieces, np.asarray(counts, np.int64), keys)
    while search.num_candidates > MOST_CANDIDATES and search.shift > 0:
        search.narrow()
    return search.finish()


class _Search:
    """The state of a radix search: the leading bits of each row's k-th largest, and how many lie above them."""

    def __init__(self, pieces: Pieces, counts: Array, keys: Keys) -> None:
        self.pieces, self.keys = pieces, keys
        self.shift = 64
        self.prefix = np.zeros(counts.size, np.uint64)
        self.rank = counts.copy()  # which of the candidates, counted from the largest, ends the selection
        self.inside = np.full(counts.size, pieces.num_elements)
        self.open: list[int] = np.flatnonzero((counts > 0) & (counts < pieces.num_elements)).tolist()
        self.counts = counts

    @property
    def num_candidates(self) -> int:
        return int(self.inside[self.open].sum())

    def candidates(self) -> Iterator[tuple[int, Array]]:
        """(row, bits of the row's keys that share its prefix), piece after piece."""
        for piece in self.pieces:
            bits = self.keys(piece).view(np.uint64)
            for row in self.open:
                inside: Array = bits[row]
                if self.shift < 64:
                    inside = inside[(inside >> np.uint64(self.shift)) == self.prefix[row]]
                yield row, inside

    def narrow(self) -> None:
        """Fix the next digit of every open row by a histogram."""
        after = self.shift - _DIGIT
        histogram = np.zeros((self.counts.size, 1 << _DIGIT), np.int64)
        for row, bits in self.candidates():
            digit = (bits >> np.uint64(after)).view(np.int64)  # bincount would copy any other type
            if self.shift < 64:
                digit &= (1 << _DIGIT) - 1
            found = np.bincount(digit)
            histogram[row, : found.size] += found
        for row in self.open:
            above = np.cumsum(histogram[row, ::-1])  # above[i]: entries in the i + 1 highest bins
            place = int(np.searchsorted(above, self.rank[row]))
            found_digit = histogram.shape[1] - 1 - place
            self.inside[row] = histogram[row, found_digit]
            self.rank[row] -= int(above[place]) - int(histogram[row, found_digit])
            self.prefix[row] = (self.prefix[row] << np.uint64(_DIGIT)) | np.uint64(found_digit)
        self.shift = after

    def finish(self) -> Cut:
        """The exact values, once the candidates are few or all alike."""
        value = np.where(self.counts > 0, 0.0, np.inf)
        equal = np.full(self.counts.size, -1, np.int64)
        if self.shift == 0:
            value[self.open] = self.prefix[self.open].view(np.float64)
            ties = self.inside
        else:
            ties = self._partition(value)
        for row in self.open:
            if self.rank[row] < ties[row]:
                equal[row] = self.rank[row]
        return Cut(value, equal)

    def _partition(self, value: Array) -> Array:
        """Find each open row's value among its candidates; rank becomes how many of those equal to it are kept."""
        held: dict[int, list[Array]] = {row: [] for row in self.open}
        for row, bits in self.candidates():
            held[row].append(bits.copy() if self.shift == 64 else bits)
        ties = np.zeros(self.counts.size, np.int64)
        for row, chunks in held.items():
            bits = np.concatenate(chunks)
            place = bits.size - int(self.rank[row])
            ordered = np.partition(bits, place)
            value[row] = ordered[place : place + 1].view(np.float64)[0]
            self.rank[row] -= np.count_nonzero(bits > ordered[place])
            ties[row] = np.count_nonzero(bits == ordered[place])
        return ties
