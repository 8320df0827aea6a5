"""The k largest of a tensor's entries, exactly k, without holding or sorting the tensor.

A sample tells about where the k-th largest lies; one pass counts what lies above and keeps the few numbers
near it. Where the sample misleads, or there is none, a radix search finds it: histograms over the bits of
non-negative float64 numbers, which order as the numbers do, narrow it down to a bin.

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
    """What belongs to the largest of each row: all above value[R], and the first equal[R] of those at it (−1:
    all)."""

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


def cut(pieces: Pieces, counts: Sequence[int], keys: Keys = magnitude, *, by_entry: bool = True) -> Cut:
    """Where the counts[R] largest of the rows of keys(piece) end; with fewer rows than counts they are taken
    in turn.

    Keys are ≥ 0 and finite; by_entry: an entry's key depends on that entry alone, so that a sample of entries
    has keys too. Memory: one piece and its keys, and at most MOST_CANDIDATES numbers. Cost: 1 or 2 passes for
    tensors of up to a few million elements, 3 to 5 for larger ones and for those that are nearly constant.
    """
    search = _Search(pieces, np.asarray(counts, np.int64), keys)
    sample = pieces.sample() if by_entry and search.open else None
    if sample is not None:
        search.guess(sample)
    while search.num_candidates > MOST_CANDIDATES and search.shift > 0:
        search.narrow()
    return search.finish()


class _Search:
    """The state of a search: the leading bits of each open row's k-th largest, and how many lie above
    them."""

    def __init__(self, pieces: Pieces, counts: Array, keys: Keys) -> None:
        self.pieces, self.keys = pieces, keys
        self.shift = 64
        self.prefix = np.zeros(counts.size, np.uint64)
        self.rank = counts.copy()  # which of the candidates, counted from the largest, ends the selection
        self.inside = np.full(counts.size, pieces.num_elements)
        self.open: list[int] = np.flatnonzero((counts > 0) & (counts < pieces.num_elements)).tolist()
        self.value = np.where(counts > 0, 0.0, np.inf)
        self.equal = np.full(counts.size, -1, np.int64)

    @property
    def num_candidates(self) -> int:
        return int(self.inside[self.open].sum())

    def guess(self, sample: Array) -> None:
        """Settle rows in one pass, by bounds around where a sample has the rank; rows that miss them stay
        open."""
        keys = self.keys(sample)
        # 2 % of the sample on each side of the rank: chance moves it by 0.3 %, neighbours that are alike by
        # more. There must be room for twice the entries that are then expected between the bounds.
        margin = keys.shape[1] // 50
        if 4 * margin * self.pieces.num_elements // keys.shape[1] * len(self.open) > MOST_CANDIDATES:
            return
        bounds = {row: self._bounds(np.sort(keys[row % len(keys)]), row, margin) for row in self.open}
        above = dict.fromkeys(self.open, 0)
        near: dict[int, list[Array]] = {row: [] for row in self.open}
        for piece in self.pieces:
            found = self.keys(piece)
            for row, (low, high) in bounds.items():
                each: Array = found[row % len(found)]  # one row of keys may serve several counts
                above[row] += int(np.count_nonzero(each > high))
                near[row].append(each[(each >= low) & (each <= high)].view(np.uint64))
        for row in list(self.open):
            bits = np.concatenate(near[row])
            if 0 < self.rank[row] - above[row] <= bits.size:
                self.rank[row] -= above[row]
                self._settle(row, bits)

    def _bounds(self, ordered: Array, row: int, margin: int) -> tuple[float, float]:
        place = ordered.size - 1 - int(ordered.size * self.rank[row] / self.pieces.num_elements)
        low = ordered[place - margin] if place >= margin else 0.0
        high = ordered[place + margin] if place + margin < ordered.size else np.inf
        return float(low), float(high)

    def candidates(self) -> Iterator[tuple[int, Array]]:
        """(row, bits of the row's keys that share its prefix), piece after piece."""
        if not self.open:
            return
        for piece in self.pieces:
            bits = self.keys(piece).view(np.uint64)
            for row in self.open:
                inside: Array = bits[row % len(bits)]
                if self.shift < 64:
                    inside = inside[(inside >> np.uint64(self.shift)) == self.prefix[row]]
                yield row, inside

    def narrow(self) -> None:
        """Fix the next digit of every open row by a histogram."""
        after = self.shift - _DIGIT
        histogram = np.zeros((self.rank.size, 1 << _DIGIT), np.int64)
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
            # `above` counts the bin itself too: of the entries in higher bins only, the rank is free.
            self.rank[row] -= int(above[place]) - int(histogram[row, found_digit])
            self.prefix[row] = (self.prefix[row] << np.uint64(_DIGIT)) | np.uint64(found_digit)
        self.shift = after

    def finish(self) -> Cut:
        """The exact values, once the candidates are few or all alike."""
        if self.shift == 0:
            for row in list(self.open):
                self._close(row, self.prefix[row], int(self.inside[row]))
        else:
            held: dict[int, list[Array]] = {row: [] for row in self.open}
            for row, bits in self.candidates():
                # Unfiltered, they are a view of what the next piece overwrites.
                held[row].append(bits.copy() if self.shift == 64 else bits)
            for row, chunks in held.items():
                self._settle(row, np.concatenate(chunks))
        return Cut(self.value, self.equal)

    def _settle(self, row: int, bits: Array) -> None:
        """Find the row's value among all candidates: rank counts from their largest."""
        place = bits.size - int(self.rank[row])
        border = np.partition(bits, place)[place]
        self.rank[row] -= np.count_nonzero(bits > border)
        self._close(row, border, int(np.count_nonzero(bits == border)))

    def _close(self, row: int, bits: np.uint64, ties: int) -> None:
        """The row's value is known; of its `ties` equals the first rank[row] are kept."""
        self.value[row] = bits.view(np.float64)
        if self.rank[row] < ties:
            self.equal[row] = self.rank[row]
        self.open.remove(row)
