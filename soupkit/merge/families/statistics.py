"""Merges that weigh parameters by statistics of each model's own data: Fisher-weighted averages, RegMean.

Shape suffixes: K ingredients, N elements of a piece, O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.errors import CheckpointError
from soupkit.merge.families.election import check_sum, total
from soupkit.merge.pieces import Pieces


def fisher(
    pieces: Pieces, *, weight: Array, statistics: Pieces | None, floor: float = 1e-6
) -> Iterator[Array]:
    """Σ_k w_k F_k θ_k / Σ_k w_k F_k with each model's diagonal Fisher information, at least `floor` (Matena &
    Raffel 2022, arXiv:2111.09832, eq. 4). Tensors without statistics get the weighted mean. Memory: two
    pieces.

    Where all the statistics are zero, the floor makes it the weighted mean. Raises CheckpointError for
    negative statistics, RecipeError when the weights sum to zero.
    """
    check_sum(weight, "fisher")
    if statistics is None:
        for weights_KN in pieces:
            yield total(weights_KN, weight, normalize=True)
        return
    for weights_KN, fisher_KN in zip(pieces, statistics, strict=True):
        if (fisher_KN < 0).any():
            raise CheckpointError(
                "a Fisher information is negative", hint="it is a mean of squared gradients"
            )
        np.maximum(fisher_KN, floor, out=fisher_KN)
        np.multiply(fisher_KN, weight[:, None], out=fisher_KN)
        np.multiply(weights_KN, fisher_KN, out=weights_KN)
        yield np.add.reduce(weights_KN) / np.add.reduce(fisher_KN)


def regmean(
    pieces: Pieces, *, weight: Array, grams: Sequence[Array] | None, shrink: float = 0.9
) -> Iterator[Array]:
    """(Σ_k w_k G_k)⁻¹ Σ_k w_k G_k W_kᵀ, transposed, for a linear layer W (O, I) whose inputs have the Gram
    matrix G = XᵀX (I, I), with off-diagonal entries times `shrink` (Jin et al. 2023, arXiv:2212.09849, eq. 2
    and §3.2).

    Tensors without Gram matrices get the weighted mean, as published. The piece is the whole tensor. Memory:
    K versions of the tensor and of its Gram matrix; cost: one I × I solve. Raises CheckpointError for Gram
    matrices that do not fit or leave the system singular, RecipeError when the weights sum to zero.
    """
    check_sum(weight, "regmean")
    if grams is None:
        for weights_KN in pieces:
            yield total(weights_KN, weight, normalize=True)
        return
    (weights_KN,) = pieces
    num_inputs = pieces.row_length
    left, right = (
        np.zeros((num_inputs, num_inputs)),
        np.zeros((num_inputs, weights_KN.shape[1] // num_inputs)),
    )
    for weights_N, gram, share in zip(weights_KN, grams, weight, strict=True):
        if gram.shape != left.shape:
            raise CheckpointError(
                f"a Gram matrix has shape {list(gram.shape)}, its layer has {num_inputs} inputs"
            )
        scaled = share * (shrink * gram.astype(np.float64) + (1 - shrink) * np.diag(np.diag(gram)))
        left += scaled
        right += scaled @ weights_N.reshape(-1, num_inputs).T
    yield _solve(left, right).T.reshape(-1)


def _solve(left: Array, right: Array) -> Array:
    try:
        solution: Array = np.linalg.solve(left, right)
    except np.linalg.LinAlgError:
        raise CheckpointError(
            "the Gram matrices of a layer are singular together",
            hint="collect them on more examples, or lower --shrink",
        ) from None
    return solution
