"""DARE: drop task vectors' entries at random and rescale the rest.

Exactly k = max(1, round(density · n)) entries are kept, evenly over strata of STRATUM elements, and rescaled
by n/k: every entry is kept with the published probability, and the expectation is the task vector; the count
no longer varies.

Shape suffixes: K ingredients, N elements of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.families.election import elected, total
from soupkit.merge.pieces import STRATUM, Draws, Pieces, kept, uniform_bits

SAMPLE = 1024
"""Keys that tell where in the others a rank lies, to within four standard deviations."""


def dare_linear(
    pieces: Pieces,
    *,
    weight: Array,
    density: Array,
    draws: Draws,
    normalize: bool = False,
    rescale: bool = True,
) -> Iterator[Array]:
    """Σ_k w_k (n/k) m_k ⊙ τ_k with random masks m_k (Yu et al. 2024, arXiv:2311.03099, eq. 3). Memory: a
    piece."""
    for vectors in random_entries(pieces, density, draws, rescale=rescale):
        yield total(vectors, weight, normalize=normalize)


def dare_ties(
    pieces: Pieces,
    *,
    weight: Array,
    density: Array,
    draws: Draws,
    normalize: bool = False,
    rescale: bool = True,
) -> Iterator[Array]:
    """DARE's masks with the sign election of TIES (Yu et al. 2024, arXiv:2311.03099, §4.4). Memory: a
    piece."""
    for vectors in random_entries(pieces, density, draws, rescale=rescale):
        yield elected(vectors, weight, normalize=normalize)


def random_entries(pieces: Pieces, density: Array, draws: Draws, *, rescale: bool) -> Iterator[Array]:
    """The task vectors with all but k random entries set to zero, and those rescaled by n/k."""
    size = pieces.num_elements
    counts = [kept(share, size) for share in density]
    streams = [draws.stream(k) for k in range(pieces.num_ingredients)]
    quotas = [Quota(count, size, stream) for count, stream in zip(counts, streams, strict=True)]
    for vectors_KN in pieces:
        for vector_N, count, quota, stream in zip(vectors_KN, counts, quotas, streams, strict=True):
            if count == size:  # nothing is drawn: every ingredient has a stream of its own
                continue
            for start in range(0, vector_N.size, STRATUM):
                stratum = vector_N[start : start + STRATUM]
                np.multiply(
                    stratum, lowest(uniform_bits(stream, stratum.size), quota.of(stratum.size)), out=stratum
                )
            # By n/k of the whole tensor: a stratum may keep none, for which no factor of its own makes up.
            if rescale:
                np.multiply(vector_N, size / count, out=vector_N)
        yield vectors_KN


class Quota:
    """Shares `count` of `size` out over the strata, in order: each gets its part, rounded up or down at
    random, and all of them together exactly the count (systematic sampling: the expectation of every part is
    exact)."""

    def __init__(self, count: int, size: int, stream: np.random.SFC64) -> None:
        self._count, self._size = count, size
        self._offset = int(stream.random_raw()) % max(1, size)
        self._place = 0

    def of(self, num_elements: int) -> int:
        """How many of the next `num_elements` are kept."""
        before = (self._count * self._place + self._offset) // self._size
        self._place += num_elements
        return (self._count * self._place + self._offset) // self._size - before


def lowest(keys: Array, count: int) -> Array:
    """Booleans: the `count` lowest keys; of equal keys the first."""
    if count <= 0:
        return np.zeros(keys.size, np.bool_)
    if count >= keys.size:
        return np.ones(keys.size, np.bool_)
    border = _ordered(keys, count - 1)
    mask: Array = keys <= border
    surplus = np.count_nonzero(mask) - count
    if surplus:
        mask[np.flatnonzero(keys == border)[-surplus:]] = False
    return mask


def _ordered(keys: Array, place: int) -> Any:
    """The key with `place` lower ones: looked for near where it should be, several times faster than a
    partition."""
    low, high = _window(keys, place)
    near = keys[(keys >= low) & (keys <= high)]
    rank = place - np.count_nonzero(keys < low)
    if 0 <= rank < near.size:
        return np.partition(near, rank)[rank]
    return np.partition(keys, place)[place]


def _window(keys: Array, place: int) -> tuple[float | np.integer, float | np.integer]:
    """Bounds that nearly always hold the key of that rank: of uniform integers, or by a sample of any
    others."""
    share = (place + 0.5) / keys.size
    if keys.dtype == np.uint32:
        # Five standard deviations of the order statistic; at the ends, where it hardly has any, two places.
        width = 5 * (share * (1 - share) / keys.size) ** 0.5 + 2 / keys.size
        low, high = max(0.0, share - width), min(1.0, share + width)
        return np.uint32(low * 0xFFFFFFFF), np.uint32(high * 0xFFFFFFFF)
    sample = np.sort(keys[:: max(1, keys.size // SAMPLE)])
    place = int(share * sample.size)
    margin = SAMPLE // 16
    low = sample[place - margin] if place >= margin else -np.inf
    return low, sample[place + margin] if place + margin < sample.size else np.inf
