"""DELLA: drop at random, but small entries more often than large ones (MAGPRUNE).

Shape suffixes: K ingredients, N elements of a piece, R rows of it, L elements of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.errors import RecipeError
from soupkit.merge.families.dare import Quota, lowest
from soupkit.merge.families.election import elected, total
from soupkit.merge.pieces import Draws, Pieces, kept, rows_of_a_stratum, uniform_bits


def della_linear(
    pieces: Pieces,
    *,
    weight: Array,
    density: Array,
    epsilon: Array,
    draws: Draws,
    normalize: bool = False,
    rescale: bool = True,
) -> Iterator[Array]:
    """Σ_k w_k m_k ⊙ τ_k / π_k: MAGPRUNE without the election (Deep et al. 2024, arXiv:2406.11617, §3).
    Memory: a piece, or the longest row."""
    for vectors in magprune(pieces, density, epsilon, draws, rescale=rescale):
        yield total(vectors, weight, normalize=normalize)


def della_ties(
    pieces: Pieces,
    *,
    weight: Array,
    density: Array,
    epsilon: Array,
    draws: Draws,
    normalize: bool = True,
    rescale: bool = True,
) -> Iterator[Array]:
    """Drop, elect, fuse (Deep et al. 2024, arXiv:2406.11617, §3): MAGPRUNE with the sign election of TIES.
    Memory: a piece, or the longest row."""
    for vectors in magprune(pieces, density, epsilon, draws, rescale=rescale):
        yield elected(vectors, weight, normalize=normalize)


def magprune(
    pieces: Pieces, density: Array, epsilon: Array, draws: Draws, *, rescale: bool
) -> Iterator[Array]:
    """Keep an entry with probability π = density − ε/2 + ε · rank / (L − 1), rank 0 for the smallest
    magnitude of its row, and rescale it by 1/π (Deep et al. 2024, arXiv:2406.11617, §3.1; rows are output
    units).

    Exactly max(1, round(density · n)) entries are kept, evenly over strata of whole rows: those with
    the lowest U(1 − π) / ((1 − U) π), U uniform (Pareto sampling, Rosén 1997,
    doi:10.1016/S0378-3758(96)00186-3), whose inclusion probabilities are π to within O(1/N). The pieces hold
    whole rows. Costs a sort of every row. Raises RecipeError where π would leave (0, 1].
    """
    size, length = pieces.num_elements, pieces.row_length
    counts = [kept(share, size) for share in density]
    streams = [draws.stream(k) for k in range(pieces.num_ingredients)]
    quotas = [Quota(count, size, stream) for count, stream in zip(counts, streams, strict=True)]
    ranks = [_probabilities(share, spread, length) for share, spread in zip(density, epsilon, strict=True)]
    step = length * rows_of_a_stratum(length)
    for vectors_KN in pieces:
        for vector_N, count, chances_L, quota, stream in zip(
            vectors_KN, counts, ranks, quotas, streams, strict=True
        ):
            if count < size:
                for start in range(0, vector_N.size, step):
                    _prune(vector_N[start : start + step], chances_L, quota, stream, rescale=rescale)
        yield vectors_KN


def _prune(stratum: Array, chances_L: Array, quota: Quota, stream: np.random.SFC64, *, rescale: bool) -> None:
    """Keep the stratum's share of the entries, each with about the chance of its rank, and rescale them in
    place."""
    places = _by_rank(stratum.reshape(-1, chances_L.size))
    odds = _spread((1.0 - chances_L) / chances_L, places)
    uniform = (uniform_bits(stream, stratum.size) + 0.5) / 2.0**32
    mask = lowest(uniform / (1.0 - uniform) * odds, quota.of(stratum.size))
    np.multiply(stratum, mask * _spread(1.0 / chances_L, places) if rescale else mask, out=stratum)


def _probabilities(density: float, epsilon: float, length: int) -> Array:
    """π of rank 0, 1, …, L − 1; the density itself in a row of one."""
    if density - epsilon / 2 <= 0 or density + epsilon / 2 > 1 > density:
        raise RecipeError(
            f"della: density {density:g} ± epsilon/2 = {epsilon / 2:g} leaves the range from 0 to 1",
            hint="lower --epsilon",
        )
    if length == 1:
        return np.array([density])
    chances: Array = np.linspace(density - epsilon / 2, density + epsilon / 2, length)
    return chances


def _by_rank(rows_RL: Array) -> Array:
    """The flat places of every row's entries from the smallest magnitude to the largest; of equal ones the
    first.

    Magnitudes are compared as float32: their bits and the place make one integer, which sorts three times
    faster than the numbers are ranked.
    """
    bits = np.abs(rows_RL).astype(np.float32).view(np.uint32).astype(np.uint64)
    keys = (bits << np.uint64(32)) | np.arange(rows_RL.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    inside = (keys & np.uint64(0xFFFFFFFF)).view(np.int64)
    places: Array = inside + np.arange(0, rows_RL.size, rows_RL.shape[1])[:, None]
    return places


def _spread(values_L: Array, places_RL: Array) -> Array:
    """Put the value of every rank where the entry of that rank is."""
    spread = np.empty(places_RL.size)
    spread[places_RL] = values_L
    return spread
