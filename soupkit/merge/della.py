"""DELLA: drop at random, but small entries more often than large ones (MAGPRUNE).

Shape suffixes: K ingredients, N elements of a piece, R rows of it, L elements of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.errors import RecipeError
from soupkit.merge.dare import Quota, lowest
from soupkit.merge.election import elected, total
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
    """Σ_k w_k m_k ⊙ τ_k / π_k: MAGPRUNE without the election. Memory: a piece, or the longest row."""
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
    """Drop, elect, fuse (Deep et al. 2024, arXiv:2406.11617, §3): MAGPRUNE with the sign election of TIES."""
    for vectors in magprune(pieces, density, epsilon, draws, rescale=rescale):
        yield elected(vectors, weight, normalize=normalize)


def magprune(pieces: Pieces, density: Array, epsilon: Array, draws: Draws, *, rescale: bool) -> Iterator[Array]:
    """Keep an entry with probability π = density − ε/2 + ε · rank / (L − 1), rank 0 for the smallest magnitude of its
    row, and rescale it by 1/π (Deep et al. 2024, arXiv:2406.11617, §3.1; rows are output units).

    Exactly max(1, round(density · n)) entries are kept, evenly over strata of whole rows: those with
    the lowest U(1 − π) / ((1 − U) π), U uniform (Pareto sampling, Rosén 1997, doi:10.1016/S0378-3758(96)00186-3),
    whose inclusion probabilities are π to within O(1/N). The pieces hold whole rows. Costs a sort of every row.
    Raises RecipeError where π would leave (0, 1].
    """
    size = pieces.num_elements
    counts = [kept(share, size) for share in density]
    streams = [draws.stream(k) for k in range(pieces.num_ingredients)]
    quotas = [Quota(count, size, stream) for count, stream in zip(counts, streams, strict=True)]
    length = pieces.row_length
    probabilities = [_probabilities(share, spread, length) for share, spread in zip(density, epsilon, strict=True)]
    step = length * rows_of_a_stratum(length)
    for vectors_KN in pieces:
        for k, vector_N in enumerate(vectors_KN):
            if counts[k] == size:
                continue
            for start in range(0, vector_N.size, step):
                stratum = vector_N[start : start + step]
                chances = _by_rank(stratum.reshape(-1, length), probabilities[k]).reshape(-1)
                mask = _pareto(chances, uniform_bits(streams[k], stratum.size), quotas[k].of(stratum.size))
                np.multiply(stratum, mask / chances if rescale else mask, out=stratum)
        yield vectors_KN


def _pareto(chances: Array, bits: Array, count: int) -> Array:
    """`count` entries, each with about its chance."""
    uniform = (bits + 0.5) / 2.0**32
    return lowest(uniform * (1.0 - chances) / ((1.0 - uniform) * chances), count)


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


def _by_rank(rows_RL: Array, probability_L: Array) -> Array:
    """The probability of every entry from its magnitude's rank in its row (equal magnitudes: the first is lower)."""
    order = np.argsort(np.abs(rows_RL), axis=1, kind="stable")
    chances = np.empty(rows_RL.shape)
    np.put_along_axis(chances, order, np.broadcast_to(probability_L, rows_RL.shape), axis=1)
    return chances
