"""What becomes of weighted task vectors once they are sparse: their sum, or the sum of those that win an
election.

Shape suffixes: K ingredients, N elements of a piece.
"""

from __future__ import annotations

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.errors import RecipeError


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


def check_sum(weight_K: Array, method: str) -> float:
    """Σ_k w_k of a mean, which is divided by it. Raises RecipeError when it is zero."""
    divisor = float(np.sum(weight_K))
    if divisor == 0:
        raise RecipeError(f"{method}: the weights sum to zero", hint="give weights such as --weight 0.7,0.3")
    return divisor


def elected(vectors_KN: Array, weight_K: Array, *, normalize: bool) -> Array:
    """Sign election and disjoint merge of TIES (Yadav et al. 2023, arXiv:2306.01708, §3): for every element
    the sign of Σ_k w_k τ_k wins, and only the w_k τ_k of that sign are added; normalized, divided by the sum
    of their w_k.

    With equal weights that is the published mean over the agreeing, non-zero entries. Where the signs cancel
    exactly, no sign is elected and the result is zero. Costs five cheap operations per entry. May overwrite
    the vectors.
    """
    unit = float(weight_K[0]) if weight_K[0] != 0 and (weight_K == weight_K[0]).all() else None
    mass, positive = np.zeros((2, vectors_KN.shape[1]), vectors_KN.dtype)
    shares = (
        _Shares(vectors_KN.shape[1], counted=unit is not None and len(weight_K) < 256) if normalize else None
    )
    for vector_N, weight in zip(vectors_KN, weight_K, strict=True):
        if unit is None:
            np.multiply(vector_N, weight, out=vector_N)
        np.add(mass, vector_N, out=mass)
        if shares:
            shares.add(vector_N, 1.0 if unit is not None else weight)
        np.maximum(vector_N, 0, out=vector_N)
        np.add(positive, vector_N, out=positive)
    wins = mass > 0
    result: Array = np.where(wins, positive, mass - positive)
    if shares:  # a weight that all have cancels
        np.divide(result, shares.of(wins), out=result)
    elif unit is not None and unit != 1:
        np.multiply(result, unit, out=result)
    np.multiply(result, mass != 0, out=result)
    return result


class _Shares:
    """For every element, the weights of the entries above zero, and of those below; counted: the weights are
    ones."""

    def __init__(self, size: int, *, counted: bool) -> None:
        self._counted = counted
        self._positive, self._negative = np.zeros((2, size), np.uint8 if counted else np.float64)

    def add(self, vector_N: Array, weight: float) -> None:
        """Add one ingredient's share where its entries are not zero."""
        for share, agreeing in ((self._positive, vector_N > 0), (self._negative, vector_N < 0)):
            np.add(share, agreeing.view(np.uint8) if self._counted else agreeing * weight, out=share)

    def of(self, wins: Array) -> Array:
        """The winners' share; 1 where that is zero."""
        if not self._counted:
            share: Array = np.where(wins, self._positive, self._negative)
            share[share == 0] = 1
            return share
        # Bytes wrap around and come back: negative + wins · (positive − negative), several times faster than
        # a choice.
        count: Array = self._negative + wins.view(np.uint8) * (self._positive - self._negative)
        result: Array = np.maximum(count, 1, out=count).astype(np.float64)
        return result
