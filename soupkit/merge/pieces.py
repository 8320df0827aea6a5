"""`Pieces`: one tensor of every ingredient, cut into pieces that fit in cache; what every method of merging
reads.

A method is a generator: it may go over the pieces as often as it likes to measure, and on its last pass
yields the merged values of each piece. So the same function merges a scalar and an embedding of many
gigabytes in bounded memory.

Shape suffixes: K ingredients, N elements of a piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import xxhash

from soupkit.checkpoint.dtypes import Array

STRATUM = 1 << 15
"""Elements that a random draw covers at once; a piece is a multiple of it, so that pieces never change a
draw."""


SAMPLED = 1 << 19
"""Tensors of fewer elements are not sampled."""
SAMPLE = 1 << 15
"""Entries of a sample."""


class Pieces(Protocol):
    """The K versions of one tensor: iterating gives (K, N) arrays of float64 (or float32), from the first
    element on.

    Each array is the caller's until the next one is asked for, and may be overwritten. row_length is the
    number of elements of one output unit: the last axes of a matrix or a convolution, the whole of a vector.
    Methods that work on rows get pieces of whole rows.
    """

    @property
    def num_ingredients(self) -> int: ...

    @property
    def num_elements(self) -> int: ...

    @property
    def row_length(self) -> int: ...

    def __iter__(self) -> Iterator[Array]: ...

    def sample(self) -> Array | None:
        """(K, M) entries from places all over a large tensor; None where a sample would not pay."""
        ...


class Arrays:
    """Pieces of arrays that are in memory: what a library caller, or a test, hands to a method."""

    def __init__(self, arrays: Sequence[Array], *, piece: int | None = None) -> None:
        self._stacked = np.stack([np.asarray(array, np.float64) for array in arrays])
        self._shape = self._stacked.shape[1:]
        self._piece = piece or max(1, self.num_elements)

    @property
    def num_ingredients(self) -> int:
        return len(self._stacked)

    @property
    def num_elements(self) -> int:
        return math.prod(self._shape)

    @property
    def row_length(self) -> int:
        return row_length(self._shape)

    def __iter__(self) -> Iterator[Array]:
        flat = self._stacked.reshape(self.num_ingredients, -1)
        for start in range(0, self.num_elements, self._piece):
            yield flat[:, start : start + self._piece].copy()

    def sample(self) -> Array | None:
        """Every so manieth entry of a large tensor."""
        flat = self._stacked.reshape(self.num_ingredients, -1)
        return flat[:, :: flat.shape[1] // SAMPLE].copy() if flat.shape[1] >= SAMPLED else None

    def merged(self, pieces: Iterator[Array]) -> Array:
        """What a method yields for these pieces, as one array of the tensor's shape."""
        values: Array = np.concatenate([piece.copy() for piece in pieces] or [np.empty(0)]).reshape(
            self._shape
        )
        return values


def row_length(shape: Sequence[int]) -> int:
    """Elements of one row: one output unit of a matrix or a convolution; a vector is one row."""
    return max(1, math.prod(shape[1:] if len(shape) > 1 else shape))


def rows_of_a_stratum(length: int) -> int:
    """Whole rows that a stratum of random draws holds: about STRATUM elements, at least one row."""
    return max(1, STRATUM // length)


def kept(density: float, num_elements: int) -> int:
    """How many entries a density keeps: k = max(1, round(density · n)); none of an empty tensor."""
    return min(num_elements, max(1, round(density * num_elements)))


class Draws:
    """The random numbers of one tensor: one stream per ingredient, from (seed, position, tensor name)
    alone."""

    def __init__(self, seed: int, name: str) -> None:
        digest = xxhash.xxh3_128_intdigest(name.encode())
        self._entropy = [seed, *((digest >> shift) & 0xFFFFFFFF for shift in (0, 32, 64, 96))]

    def stream(self, position: int) -> np.random.SFC64:
        """The bit generator of ingredient number `position`; the same numbers whatever the threads or the
        shards."""
        return np.random.SFC64(np.random.SeedSequence([*self._entropy, position]))


def uniform_bits(stream: np.random.SFC64, size: int) -> Array:
    """`size` uniform 32-bit integers. numpy keeps the streams of its bit generators from version to
    version."""
    bits: Array = stream.random_raw(-(-size // 2)).view(np.uint32)[:size]
    return bits
