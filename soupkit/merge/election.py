"""What becomes of weighted task vectors once they are sparse: their sum, or the sum of those that win an election.

Shape suffixes: K ingredients, N elements of a piece.
"""

from __future__ import annotations

import numpy as np

from soupkit.checkpoint.dtypes import Array


def total(vectors_KN: Array, weight_K: Array, *, normalize: bool) -> Array:
    """Σ_k w_k τ_k, divided by Σ_k w_k when normalized (unless that is zero). May overwrite the vectors."""
    result: Array = vectors_KN[0] * weight_K[0]
    for vector_N, weight in zip(vectors_KN[1:], weight_K[1:], strict=True):
        np.multiply(vector_N, weight, out=vector_N)
        np.add(result, vector_N, out=result)
    divisor = float(np.sum(weight_K))
    if normalize and divisor != 0:
        np.divide(result, divisor, out=result)
    return result


def elected(vectors_KN: Array, weight_K: Array, *, normalize: bool) -> Array:
    """Sign election and disjoint merge of TIES (Yadav et al. 2023, arXiv:2306.01708, §3): for every element the sign of
    Σ_k w_k τ_k wins, and only the w_k τ_k of that sign are added; normalized, divided by the sum of their w_k.

    With equal weights that is the published mean over the agreeing, non-zero entries. Where the signs cancel exactly,
    no sign is elected and the result is zero. Costs five cheap operations per entry. May overwrite the vectors.
    """
    size = vectors_KN.shape[1]
    zeros = [np.zeros(size, vectors_KN.dtype) for _ in range(4 if normalize else 2)]
    mass, positive, *shares = zeros
    for vector_N, weight in zip(vectors_KN, weight_K, strict=True):
        if weight != 1:
            np.multiply(vector_N, weight, out=vector_N)
        np.add(mass, vector_N, out=mass)
        if normalize:
            for share, agreeing in zip(shares, (vector_N > 0, vector_N < 0), strict=True):
                np.add(share, agreeing if weight == 1 else agreeing * weight, out=share)
        np.maximum(vector_N, 0, out=vector_N)
        np.add(positive, vector_N, out=positive)
    return _winners(mass, positive, shares)


def _winners(mass: Array, positive: Array, shares: list[Array]) -> Array:
    """The positive sum where the mass is positive, the rest of the mass where it is negative, over its share."""
    wins = mass > 0
    result: Array = np.where(wins, positive, mass - positive)
    if shares:
        divisor = np.where(wins, shares[0], shares[1])
        np.divide(result, divisor, out=result, where=divisor != 0)
    result[mass == 0] = 0
    return result
