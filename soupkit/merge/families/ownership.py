"""Merges that ask which tasks changed an entry, and by how much: RAM, RAM+, MagMax, EMR.

Shape suffixes: K ingredients, N elements of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.families.task_arithmetic import check_task
from soupkit.merge.pieces import Pieces


def ram(pieces: Pieces, *, epsilon: float) -> Iterator[Array]:
    """The mean of the changes of an entry over the tasks that changed it: changes of one task alone are kept
    whole (Yuan et al. 2026, arXiv:2601.13572). A change is above `epsilon`. Reads task vectors. Memory: a
    piece."""
    return _disjoint(pieces, epsilon, np.ones(pieces.num_ingredients))


def ram_plus(pieces: Pieces, *, epsilon: float, gain: float, clip: float) -> Iterator[Array]:
    """As RAM, but what task k alone changed is scaled by λ_k = 1 + gain · min(ρ_k, clip), ρ_k the number of
    its entries that others changed too over those that it alone changed (Yuan et al. 2026, arXiv:2601.13572,
    RAM+).

    Counts per tensor, where the paper counts over a whole model. A task that changed nothing alone has
    ρ_k = ∞ and nothing to scale. Reads task vectors twice. Memory: a piece.
    """
    shared, alone = np.zeros((2, pieces.num_ingredients))
    for vectors_KN in pieces:
        changed, count = _changed(vectors_KN, epsilon)
        shared += (changed & (count > 1)).sum(axis=1)
        alone += (changed & (count == 1)).sum(axis=1)
    ratio = np.divide(shared, alone, out=np.zeros_like(shared), where=alone > 0)
    return _disjoint(pieces, epsilon, 1 + gain * np.minimum(ratio, clip))


def magmax(pieces: Pieces) -> Iterator[Array]:
    """The largest change of every entry: τ_k of the k with the largest |τ_k| (Marczak et al. 2024,
    arXiv:2407.06322, eq. 3). Of equal sizes the last one's, as its authors' code has it. Memory: a piece."""
    for vectors_KN in pieces:
        sizes = np.abs(vectors_KN[::-1])
        yield np.take_along_axis(vectors_KN[::-1], np.argmax(sizes, axis=0)[None], axis=0)[0]


def emr(pieces: Pieces, *, task: int) -> Iterator[Array]:
    """λ_k M_k ⊙ τ: task k out of one vector for all, which has the sign of Σ_k τ_k and the largest |τ_k| of
    that sign; M_k marks where τ_k has that sign too, and λ_k = Σ|τ_k| / Σ|M_k ⊙ τ| keeps its size (Huang et
    al. 2024, arXiv:2405.17461, eq. 4 to 7).

    λ_k is of each tensor, where the paper has one for a whole model. Reads task vectors twice. Raises
    RecipeError when there is no such task. Memory: a piece.
    """
    check_task(task, pieces)
    before = after = 0.0
    for vectors_KN in pieces:
        before += float(np.abs(vectors_KN[task]).sum())
        after += float(np.abs(_of_task(vectors_KN, task)).sum())
    scale = before / after if after else 0.0
    for vectors_KN in pieces:
        yield scale * _of_task(vectors_KN, task)


def _of_task(vectors_KN: Array, task: int) -> Array:
    """M_k ⊙ τ. Where the sum is zero the sign is minus, as its authors have it."""
    sign = np.where(np.add.reduce(vectors_KN) > 0, 1.0, -1.0)
    agreeing = np.maximum(vectors_KN * sign, 0)
    result: Array = sign * np.max(agreeing, axis=0) * (agreeing[task] > 0)
    return result


def _changed(vectors_KN: Array, epsilon: float) -> tuple[Array, Array]:
    changed: Array = np.abs(vectors_KN) > epsilon
    return changed, np.add.reduce(changed, dtype=np.int64)


def _disjoint(pieces: Pieces, epsilon: float, scale_K: Array) -> Iterator[Array]:
    """The mean over those that changed an entry; what one alone changed times its scale."""
    for vectors_KN in pieces:
        changed, count = _changed(vectors_KN, epsilon)
        np.multiply(vectors_KN, changed, out=vectors_KN)
        alone = np.where(count == 1, scale_K[:, None], 1.0)
        yield np.add.reduce(vectors_KN * alone) / np.maximum(count, 1)
