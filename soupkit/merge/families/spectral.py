"""Merges of task matrices by their singular vectors: TSV-M, Iso-C, Iso-CTS, and TIES in KnOTS' shared basis.

A tensor of two axes or more is a matrix with a row for each output unit; vectors, scalars and matrices with
a side of one or one longer than `max_side` (vocabularies) have no spectrum worth its cost and are averaged.
The authors average convolutions too. All read task vectors.

Shape suffixes: K ingredients, O rows, I columns, S = min(O, I), R singular vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.families.election import elected, total
from soupkit.merge.families.low_rank import leading
from soupkit.merge.families.ties import largest
from soupkit.merge.pieces import Arrays, Pieces


def tsv_m(pieces: Pieces, *, max_side: int) -> Iterator[Array]:
    """U_⊥ Σ V_⊥ᵀ, where U, Σ and V join the ⌊S / K⌋ largest singular triplets of every task matrix and A_⊥ is
    the orthonormal matrix nearest to A (Gargiulo et al. 2025, arXiv:2412.00081, eq. 9 and algorithm 1).

    With more tasks than S there is no triplet for each, and the matrix is averaged. Matrices whose
    smaller side is above 1024 and of which less than half is kept are decomposed at random with a fixed seed
    (see low_rank.leading for the bound). Memory: K versions of the tensor. Cost: K + 2 decompositions.
    """

    def merge(matrices_KOI: Array) -> Array:
        width = min(matrices_KOI.shape[1:]) // len(matrices_KOI)
        if not width:
            return _mean(matrices_KOI)
        parts = [leading(matrix, width) for matrix in matrices_KOI]
        left = _orthonormal(np.concatenate([part[0] for part in parts], axis=1))
        sizes = np.concatenate([part[1] for part in parts])
        joined: Array = (left * sizes) @ _orthonormal(np.concatenate([part[2] for part in parts]))
        return joined

    return by_matrix(pieces, merge, max_side)


def iso_c(pieces: Pieces, *, max_side: int) -> Iterator[Array]:
    """σ̄ U Vᵀ for the sum U Σ Vᵀ of the task matrices, σ̄ the mean of its singular values: all directions of
    the sum count alike (Marczak et al. 2025, arXiv:2502.04959, eq. 5).

    Directions whose singular value is zero to rounding are left out: nothing says which they are. Memory: K
    versions of the tensor. Cost: one decomposition.
    """

    def merge(matrices_KOI: Array) -> Array:
        left, sizes, right = _supported(np.sum(matrices_KOI, axis=0))
        isotropic: Array = (left @ right) * (np.mean(sizes) if sizes.size else 0.0)
        return isotropic

    return by_matrix(pieces, merge, max_side)


def iso_cts(pieces: Pieces, *, common: float, max_side: int) -> Iterator[Array]:
    """σ̄ U_⊥ V_⊥ᵀ, where U and V join the largest singular vectors of the sum (the common share of S) and,
    from what each task has outside them, its own largest; σ̄ is the mean of all their singular values (Marczak
    et al. 2025, arXiv:2502.04959, algorithm 2).

    The K tasks get equally many vectors; the common ones take the rest. Memory: K versions of the tensor.
    Cost: K + 3 decompositions.
    """

    def merge(matrices_KOI: Array) -> Array:
        num, side = len(matrices_KOI), min(matrices_KOI.shape[1:])
        own = min(round((side - int(side * common)) / num), side // num)
        parts = [leading(np.sum(matrices_KOI, axis=0), side - num * own)]
        shared = parts[0][0]
        parts += [leading(matrix - shared @ (shared.T @ matrix), own) for matrix in matrices_KOI if own]
        left, right = np.concatenate([part[0] for part in parts], 1), np.concatenate([p[2] for p in parts])
        size = np.mean(np.concatenate([part[1] for part in parts]))
        isotropic: Array = _orthonormal(left) @ _orthonormal(right) * size
        return isotropic

    return by_matrix(pieces, merge, max_side)


def knots_ties(
    pieces: Pieces, *, weight: Array, density: Array, normalize: bool, max_side: int
) -> Iterator[Array]:
    """U · TIES(Uᵀτ_1, …, Uᵀτ_K), where U are the left singular vectors of [τ_1 … τ_K]: signs are elected
    where the tasks share directions, not entries (Stoica et al. 2025, arXiv:2410.19735, §4).

    U comes from the eigenvectors of Σ_k τ_k τ_kᵀ, so singular values below 1e-7 of the largest are left out;
    the published code leaves out those below 1e-5. Trims per tensor. What is no matrix is merged by TIES as
    it is. Memory: K versions of the tensor, twice, and O × O. Cost: one symmetric eigenproblem.
    """

    def merge(matrices_KOI: Array) -> Array:
        values, basis = np.linalg.eigh(sum(matrix @ matrix.T for matrix in matrices_KOI))
        basis = basis[:, values > 1e-14 * max(values[-1], 0.0)]
        return basis @ ties(np.stack([basis.T @ matrix for matrix in matrices_KOI]))

    def ties(arrays: Array) -> Array:
        turned = Arrays(list(arrays))
        return turned.merged(elected(each, weight, normalize=normalize) for each in largest(turned, density))

    return by_matrix(pieces, merge, max_side, otherwise=ties)


def _mean(vectors_KN: Array) -> Array:
    return total(vectors_KN, np.ones(len(vectors_KN)), normalize=True)


def by_matrix(
    pieces: Pieces,
    merge: Callable[[Array], Array],
    max_side: int,
    *,
    otherwise: Callable[[Array], Array] = _mean,
) -> Iterator[Array]:
    """The one piece of a tensor, merged as K matrices where it is one."""
    sides = (pieces.num_elements // max(1, pieces.row_length), pieces.row_length)
    for vectors_KN in pieces:
        if min(sides) > 1 and max(sides) <= max_side:
            yield merge(vectors_KN.reshape(-1, *sides).astype(np.float64, copy=False)).reshape(-1)
        else:
            yield otherwise(vectors_KN)


def _supported(matrix_OI: Array) -> tuple[Array, Array, Array]:
    """The singular value decomposition without the values that are zero to rounding."""
    left, sizes, right = np.linalg.svd(matrix_OI, full_matrices=False)
    kept = sizes > max(matrix_OI.shape) * np.finfo(np.float64).eps * sizes[0]
    return left[:, kept], sizes[kept], right[kept]


def _orthonormal(matrix: Array) -> Array:
    """The nearest matrix with orthonormal columns, or rows if it is wide: the polar factor (orthogonal
    Procrustes)."""
    left, _, right = _supported(matrix)
    nearest: Array = left @ right
    return nearest
