"""`Spread`: a tensor whose numbers lie in pieces, as the processes of a sharded training wrote them.

Every piece is a box of the tensor. A stretch of the tensor in row-major order is a few boxes too, and what
such a box and a piece have in common lies in one run in the piece, so that nothing is read but what is asked
for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import EllipsisType
from typing import NamedTuple

import numpy as np

from soupkit.checkpoint.dtypes import Array

Sizes = tuple[int, ...]
MOST_COMPARED = 1 << 20


class Extent(NamedTuple):
    """Where a piece lies, row by row: the file, and the position of its first byte."""

    file: Path
    start: int


Read = Callable[[Path, int, Array], None]
"""Fills an array with the bytes of a file from a position on."""
Place = Extent | Array
"""Where a piece lies, or the piece itself: what is compressed, or lies in another order than row by row."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A box of a tensor, and the file that it is in. locate: tells where; called when it is first read."""

    offsets: Sizes
    sizes: Sizes
    file: Path
    locate: Callable[[], Place]

    @cached_property
    def place(self) -> Place:
        """Where it lies."""
        return self.locate()


@dataclass(frozen=True, eq=False)
class Spread:
    """The pieces that make up an array of a `shape`: that of the tensor, or of as many numbers in one row.

    Cost of a read: one call for each piece that it touches. Memory: what is read once more, where rows of the
    piece are shorter than those of the tensor.
    """

    shape: Sizes
    pieces: Sequence[Piece]
    _bounds: list[Array] = field(default_factory=list, init=False, repr=False)

    def read_into(self, start: int, out: Array, read: Read) -> None:
        """Fill `out` (contiguous) with the elements from number `start` on."""
        for box in boxes(self.shape, start, start + out.size):
            target = out[box.at : box.at + math.prod(box.sizes)].reshape(box.sizes)
            for piece in self._touching(box):
                _copy_common(box, piece, target, read)

    def _touching(self, box: Box) -> Sequence[Piece]:
        if len(self.pieces) == 1:
            return self.pieces
        if not self._bounds:
            self._bounds.extend(bounds_of(self.pieces))
        low, high = self._bounds[0], self._bounds[1]
        start = np.array(box.offsets, np.int64)
        meets = np.all((low < start + np.array(box.sizes, np.int64)) & (high > start), axis=1)
        return [self.pieces[int(number)] for number in np.flatnonzero(meets)]


class Box(NamedTuple):
    """A part of a stretch of elements: where it is in the array, and `at` which element of the stretch it
    begins."""

    offsets: Sizes
    sizes: Sizes
    at: int


def boxes(shape: Sizes, start: int, stop: int) -> Iterator[Box]:
    """The elements number `start` to `stop` of an array, row by row, as at most 2 ndim − 1 boxes in order."""
    yield from _boxes(shape, start, stop, (), 0)


def _boxes(shape: Sizes, start: int, stop: int, prefix: Sizes, at: int) -> Iterator[Box]:
    ones = (1,) * len(prefix)
    inner = math.prod(shape[1:])
    if not shape:
        yield Box(prefix, ones, at)
        return
    first, last = start // inner, (stop - 1) // inner
    if start % inner == 0 and stop % inner == 0:
        zeros = (0,) * (len(shape) - 1)
        yield Box((*prefix, first, *zeros), (*ones, last + 1 - first, *shape[1:]), at)
        return
    for row_start, row_stop in _rows(start, stop, inner):
        if row_stop - row_start >= inner:
            yield from _boxes(shape, row_start, row_stop, prefix, at + row_start - start)
        else:
            row = row_start // inner
            within = (row_start - row * inner, row_stop - row * inner)
            yield from _boxes(shape[1:], *within, (*prefix, row), at + row_start - start)


def _rows(start: int, stop: int, inner: int) -> Iterator[tuple[int, int]]:
    """A stretch cut where rows begin: what is left of the first, whole rows, the beginning of the last."""
    head = min(stop, -(-start // inner) * inner)
    tail = max(head, stop // inner * inner)
    yield from ((a, b) for a, b in ((start, head), (head, tail), (tail, stop)) if a < b)


def _copy_common(box: Box, piece: Piece, target: Array, read: Read) -> None:
    """Copy what a box and a piece have in common."""
    low = tuple(map(max, box.offsets, piece.offsets))
    high = tuple(
        min(a + n, b + m)
        for a, n, b, m in zip(box.offsets, box.sizes, piece.offsets, piece.sizes, strict=True)
    )
    sizes = tuple(b - a for a, b in zip(low, high, strict=True))
    into = target[_part(low, sizes, box.offsets)]
    within = tuple(a - o for a, o in zip(low, piece.offsets, strict=True))
    place = piece.place
    if not isinstance(place, Extent):
        np.copyto(into, place[_part(low, sizes, piece.offsets)])
        return
    first = 0
    for offset, size in zip(within, piece.sizes, strict=True):
        first = first * size + offset
    position = place.start + first * target.itemsize
    if into.flags.c_contiguous:
        read(place.file, position, into.reshape(-1))
    else:
        run = np.empty(sizes, target.dtype)
        read(place.file, position, run.reshape(-1))
        into[...] = run


def _part(low: Sizes, sizes: Sizes, offsets: Sizes) -> tuple[slice | EllipsisType, ...]:
    """A box within an array that begins at `offsets`; a view, even where there are no dimensions."""
    return (*(slice(a - o, a - o + n) for a, n, o in zip(low, sizes, offsets, strict=True)), ...)


def bounds_of(pieces: Sequence[Piece]) -> tuple[Array, Array]:
    """Where pieces begin and where they end, pieces × dimensions."""
    low = np.array([piece.offsets for piece in pieces], np.int64).reshape(len(pieces), -1)
    return low, low + np.array([piece.sizes for piece in pieces], np.int64).reshape(len(pieces), -1)


def fault_of(shape: Sizes, pieces: Sequence[Piece]) -> str | None:
    """What is wrong with pieces that should make up an array: a gap, an overlap, a place outside of it."""
    if any(len(piece.offsets) != len(shape) or len(piece.sizes) != len(shape) for piece in pieces):
        return "has pieces of another number of dimensions"
    if not pieces:
        return "has no pieces" if math.prod(shape) else None
    low, high = bounds_of(pieces)
    if (high > np.array(shape, np.int64)).any():
        return "has a piece that reaches beyond it"
    together = sum(math.prod(piece.sizes) for piece in pieces)
    if together < math.prod(shape):
        return f"has {together:,} of {math.prod(shape):,} numbers in its pieces"
    if together > math.prod(shape) or _overlap(low, high):
        return "has pieces that overlap"
    return None


def _overlap(low: Array, high: Array) -> bool:
    """Whether two of the boxes have something in common: all pairs, a block of boxes at a time."""
    count = len(low)
    rows = max(1, MOST_COMPARED // max(1, count))
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        meets = np.all((low[part, None] < high[None]) & (high[part, None] > low[None]), axis=2)
        if np.count_nonzero(meets) > len(low[part]):  # each with itself
            return True
    return False
