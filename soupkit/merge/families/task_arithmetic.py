"""Task arithmetic, and the merges that trim by agreement between tasks: consensus and TALL masks.

Shape suffixes: K ingredients, N elements of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.errors import RecipeError
from soupkit.merge.families.election import total
from soupkit.merge.pieces import Pieces


def task_arithmetic(pieces: Pieces, *, weight: Array, normalize: bool = False) -> Iterator[Array]:
    """Σ_k w_k τ_k (Ilharco et al. 2023, arXiv:2212.04089, §2): negative weights forget. Memory: a piece."""
    for vectors_KN in pieces:
        yield total(vectors_KN, weight, normalize=normalize)


def linear(pieces: Pieces, *, weight: Array, normalize: bool = True) -> Iterator[Array]:
    """Σ_k w_k x_k, divided by Σ_k w_k when normalized: the mean of weights themselves (Wortsman et al. 2022,
    arXiv:2203.05482, §2). Raises RecipeError when normalized weights sum to zero. Memory: a piece."""
    if normalize and float(np.sum(weight)) == 0:
        raise RecipeError(
            "linear: the weights sum to zero and cannot be normalized", hint="leave --normalize out"
        )
    for weights_KN in pieces:
        yield total(weights_KN, weight, normalize=normalize)


def passthrough(pieces: Pieces, *, scale: float) -> Iterator[Array]:
    """scale · x for the one input x, a stack of layers (Goddard 2023, mergekit). Memory: a piece."""
    for weights_KN in pieces:
        yield weights_KN[0] * scale


def tall_masks(vectors_KN: Array, merged_N: Array, threshold: float) -> Array:
    """(K, N) booleans: |τ_k| ≥ threshold · |τ_merged − τ_k|, the entries that task k needs (Wang et al. 2024,
    arXiv:2405.07813, eq. 4)."""
    masks: Array = np.abs(vectors_KN) >= threshold * np.abs(merged_N - vectors_KN)
    return masks


def consensus(
    pieces: Pieces, *, weight: Array, threshold: float = 0.4, agree: int = 2, normalize: bool = False
) -> Iterator[Array]:
    """Σ_k w_k τ_k on the entries that at least `agree` tasks need by their TALL masks, zero elsewhere:
    consensus task arithmetic (Wang et al. 2024, arXiv:2405.07813, eq. 6), without its catastrophic and
    selfish weights.

    The masks compare with the plain sum of the task vectors, as published. Memory: a piece.
    """
    for vectors_KN in pieces:
        masks = tall_masks(vectors_KN, np.add.reduce(vectors_KN), threshold)
        agreed = np.add.reduce(masks, dtype=np.int64) >= min(agree, len(vectors_KN))
        yield total(vectors_KN, weight, normalize=normalize) * agreed


def check_task(task: int, pieces: Pieces) -> None:
    """Raise RecipeError when there is no ingredient at this position."""
    if task >= pieces.num_ingredients:
        raise RecipeError(f"task is {task}, expected a position from 0 to {pieces.num_ingredients - 1}")


def tall_mask(pieces: Pieces, *, task: int, threshold: float = 0.4) -> Iterator[Array]:
    """m_task ⊙ Σ_k τ_k: what is left of one task in the sum of all, as TALL masks recover it (Wang et al.
    2024, arXiv:2405.07813, eq. 3). Raises RecipeError when there is no such task. Memory: a piece."""
    check_task(task, pieces)
    for vectors_KN in pieces:
        merged = np.add.reduce(vectors_KN)
        yield merged * tall_masks(vectors_KN[task : task + 1], merged, threshold)[0]
