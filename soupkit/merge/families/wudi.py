"""WUDI: a merged task matrix that disturbs no task in the space that its own task matrix spans.

Shape suffixes: K ingredients, O rows, I columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.families.spectral import by_matrix
from soupkit.merge.pieces import Pieces

_MOMENTS, _EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as torch has them."""


def wudi(pieces: Pieces, *, iterations: int, lr: float, max_side: int) -> Iterator[Array]:
    """Adam on Σ_k ‖(τ − τ_k) τ_kᵀ‖² / ‖τ_k‖² from τ = Σ_k τ_k (Cheng et al. 2025, arXiv:2503.08099, eq. 10
    and algorithm 1): few small steps, since its minimum is far from where the tasks are.

    The gradient 2 (τ A − B) with A = Σ_k τ_kᵀτ_k / ‖τ_k‖² and B = Σ_k τ_k τ_kᵀτ_k / ‖τ_k‖² costs one product
    of O × I by I × I an iteration, whatever K. What is no matrix is averaged; a task without a change there
    says nothing. Memory: K versions of the tensor and I × I.
    """

    def merge(matrices_KOI: Array) -> Array:
        matrices = [matrix for matrix in matrices_KOI if matrix.any()]
        merged: Array = np.sum(matrices_KOI, axis=0)
        normal, wanted = np.zeros((merged.shape[1],) * 2), np.zeros_like(merged)
        for matrix in matrices:
            gram = matrix.T @ matrix / np.square(matrix).sum()
            normal += gram
            wanted += matrix @ gram
        return _adam(merged, normal, wanted, iterations=iterations, lr=lr)

    return by_matrix(pieces, merge, max_side)


def _adam(start_OI: Array, a_II: Array, b_OI: Array, *, iterations: int, lr: float) -> Array:
    values = start_OI.copy()
    first, second = np.zeros((2, *values.shape))
    for step in range(1, iterations + 1):
        gradient = 2 * (values @ a_II - b_OI)
        for moment, new, decay in zip(
            (first, second), (gradient, np.square(gradient)), _MOMENTS, strict=True
        ):
            moment *= decay
            moment += (1 - decay) * new
        corrections = [1 - decay**step for decay in _MOMENTS]
        values -= lr * (first / corrections[0]) / (np.sqrt(second / corrections[1]) + _EPSILON)
    return values
