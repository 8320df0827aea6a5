"""Learned soups (Wortsman et al. 2022, arXiv:2203.05482, §3 and appendix I).

Shape suffixes: K ingredients, B blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Softmax:
    """Coefficients softmax_k(a_kb) over the ingredients, for each block: soups within the convex hull.

    argmin_{a, β} Σ_j ℓ(β · f(x_j, Σ_k softmax(a)_k w_k), y_j), with the temperature β on the logits; both
    start where the paper starts: uniform, and one. Blocks of one tensor each are the paper's learned soup "by
    layer".
    """

    def __init__(self, num_ingredients: int, num_blocks: int, *, temperature: bool = True) -> None:
        self.logits_KB = torch.zeros(num_ingredients, num_blocks, dtype=torch.float64, requires_grad=True)
        self.temperature = torch.ones((), dtype=torch.float64, requires_grad=True) if temperature else None

    @property
    def parameters(self) -> list[Tensor]:
        """The logits and, when it is learned, the temperature."""
        return [self.logits_KB] + ([] if self.temperature is None else [self.temperature])

    def point(self) -> tuple[Tensor, Tensor]:
        """β = softmax, γ = 1: the coefficients sum to one, so the centre keeps its weight."""
        return self.logits_KB.softmax(0), torch.ones(self.logits_KB.shape[1], dtype=torch.float64)

    def constrain(self) -> None:
        """Every value is allowed."""


class Unconstrained:
    """Coefficients of any sign and sum: soups within the linear span. They start from 1/K."""

    def __init__(self, num_ingredients: int, num_blocks: int, *, temperature: bool = True) -> None:
        start = torch.full((num_ingredients, num_blocks), 1 / num_ingredients, dtype=torch.float64)
        self.coefficients_KB = start.requires_grad_()
        self.temperature = torch.ones((), dtype=torch.float64, requires_grad=True) if temperature else None

    @property
    def parameters(self) -> list[Tensor]:
        """The coefficients and, when it is learned, the temperature."""
        return [self.coefficients_KB] + ([] if self.temperature is None else [self.temperature])

    def point(self) -> tuple[Tensor, Tensor]:
        """β = C and γ = Σ_k C: w = Σ_k C_k w_k = (Σ_k C_k) c + Σ_k C_k d_k."""
        return self.coefficients_KB, self.coefficients_KB.sum(0)

    def constrain(self) -> None:
        """Every value is allowed."""
