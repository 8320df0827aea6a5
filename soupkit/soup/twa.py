"""Trainable weight averaging (Li et al. 2023, arXiv:2205.13104) with M numbers as its whole state.

The paper trains all weights w with every gradient projected onto the span of M historical checkpoints: g ←
PᵀP g, the rows of P an orthonormal basis. Start, projected gradients, momentum and weight decay all stay in
that span, so SGD on w is SGD on y = P w: with P = Tᵀ A (A: the centre and the directions), w = Aᵀ T y and
∂L/∂y = Tᵀ (A g). T follows from the Gram matrix A Aᵀ alone, so no basis is ever made. Shape suffixes: K
directions, B blocks, N = K + 1, r rank.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs, solve_triangular
from torch import Tensor

from soupkit.soup.mehl import Step

TOLERANCE = 1e-6
"""Squared share of a length outside the span of the others below which a vector adds no dimension: a basis
of shorter rests would amplify the rounding of weights more than a thousandfold."""


class Orthonormal:
    """Coordinates y in an orthonormal basis of the span of the centre and the directions, for each block.

    gram_BNN: A Aᵀ of each block, the centre last. start_N: the point to start from, as (β, γ). Vectors that
    add no dimension get coefficient 0: repeated checkpoints, frozen blocks. `ranks` are the dimensions of the
    blocks.

    step: the length u_b that one unit of a coordinate means. "distance": 1, as published. "block": the root
    mean square of the checkpoints' distances from the centre: then steps in units of u_b are as long for a
    wide model as for a narrow one. SGD on y/u is SGD on y at u² times the learning rate.
    """

    temperature: Tensor | None = None

    def __init__(self, gram_BNN: np.ndarray, start_N: np.ndarray, *, step: Step = "distance") -> None:
        bases = [orthonormal_basis(gram_NN) for gram_NN in gram_BNN]
        self.ranks = [basis_Nr.shape[1] for basis_Nr in bases]
        self.bases = [torch.from_numpy(basis_Nr) for basis_Nr in bases]
        starts = [basis_Nr.T @ gram_NN @ start_N for basis_Nr, gram_NN in zip(bases, gram_BNN, strict=True)]
        squares_BK = np.diagonal(gram_BNN, axis1=1, axis2=2)[:, :-1]
        units = np.sqrt(squares_BK.mean(1)) if step == "block" else np.ones(len(gram_BNN))
        self.units = [float(unit) if unit > 0 else 1.0 for unit in units]  # a block that no checkpoint moves
        pairs = zip(starts, self.units, strict=True)
        self.coordinates = [torch.from_numpy(start_r / unit).requires_grad_() for start_r, unit in pairs]

    @property
    def parameters(self) -> list[Tensor]:
        """y of each block, in its unit."""
        return self.coordinates

    def point(self) -> tuple[Tensor, Tensor]:
        """(β, γ) = T u y."""
        parts = zip(self.bases, self.coordinates, self.units, strict=True)
        columns = [basis_Nr @ (y_r * unit) for basis_Nr, y_r, unit in parts]
        point_NB = torch.stack(columns, 1)
        return point_NB[:-1], point_NB[-1]

    def constrain(self) -> None:
        """Every value is allowed."""


def orthonormal_basis(gram_NN: NDArray[np.float64], *, tolerance: float = TOLERANCE) -> NDArray[np.float64]:
    """T float64[N, r] with Tᵀ (A Aᵀ) T = 1, thus P = Tᵀ A orthonormal, r the numerical rank.

    Cholesky with pivots of the Gram matrix scaled to a unit diagonal, since a centre is long and differences
    are short. With S the scales and L the factor of the chosen vectors, T = S L⁻ᵀ; rows of T of vectors not
    chosen are zero. Cost: O(N r²).
    """
    lengths_N = np.sqrt(np.diag(gram_NN))
    used = np.flatnonzero(lengths_N > 0)
    basis = np.zeros((len(gram_NN), 0))
    if not len(used):
        return basis
    scaled = gram_NN[np.ix_(used, used)] / np.outer(lengths_N[used], lengths_N[used])
    (pivoted_cholesky,) = get_lapack_funcs(("pstrf",), (scaled,))
    factor, pivots, rank, _ = pivoted_cholesky(scaled, lower=1, tol=tolerance)
    chosen = used[pivots[:rank] - 1]
    lower_rr = np.tril(factor[:rank, :rank])
    inverse_rr = solve_triangular(lower_rr, np.eye(rank), lower=True)
    basis = np.zeros((len(gram_NN), rank))
    basis[chosen] = inverse_rr.T / lengths_N[chosen, None]
    return basis
