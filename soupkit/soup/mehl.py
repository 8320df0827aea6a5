"""MEHL-Soup: a model soup in a hyper-plane, in bounded memory (Li et al. 2024, arXiv:2407.03641).

Shape suffixes: K models of a model batch, B blocks.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Step = Literal["block", "distance"]


class HyperPlane:
    """w_b = c_b + Σ_k X_kb u_b d_kb / ‖d_kb‖: coordinates along unit directions from the centre of a model
    batch.

    step: the length u_b that one unit of X means. "distance": 1, as published (eq. 6–7): a step is an
    absolute distance between weights, so the right learning rate depends on the model. "block": the root mean
    square of ‖d_kb‖ over the batch, divided by √K, so that X = 1 in all coordinates at once goes about as far
    as the models lie apart, whatever the block, the model and the size of the batch. A block in which a model
    does not differ from the centre has coefficient 0, never 0/0. In terms of the models, β_kb = X_kb u_b /
    ‖d_kb‖: the coefficients of each block, the centre's 1 − Σ_k β_kb included, sum to one and may have any
    sign.

    nonnegative: keep the soup within the convex hull of the models and the centre: after each step β is
    projected onto {β ≥ 0, Σ_k β ≤ 1} (Duchi et al. 2008).
    """

    temperature: Tensor | None = None

    def __init__(self, norms_KB: np.ndarray, *, step: Step = "block", nonnegative: bool = False) -> None:
        unit_B = (
            np.sqrt((norms_KB**2).mean(0) / max(1, len(norms_KB)))
            if step == "block"
            else np.ones(norms_KB.shape[1])
        )
        with np.errstate(divide="ignore"):
            factors_KB = np.where(norms_KB > 0, unit_B / np.where(norms_KB > 0, norms_KB, 1), 0)
        self.factors_KB = torch.from_numpy(factors_KB)
        self.coordinates_KB = torch.zeros(norms_KB.shape, dtype=torch.float64, requires_grad=True)
        self.nonnegative = nonnegative

    @property
    def parameters(self) -> list[Tensor]:
        """X."""
        return [self.coordinates_KB]

    def point(self) -> tuple[Tensor, Tensor]:
        """β = X u / ‖d‖, γ = 1."""
        return self.coordinates_KB * self.factors_KB, torch.ones(
            self.factors_KB.shape[1], dtype=torch.float64
        )

    def constrain(self) -> None:
        """Project onto the convex hull, where that is wanted."""
        if self.nonnegative:
            with torch.no_grad():
                safe_KB = torch.where(self.factors_KB > 0, self.factors_KB, 1.0)
                self.coordinates_KB.copy_(into_hull(self.coordinates_KB * self.factors_KB) / safe_KB)


def into_hull(beta_KB: Tensor) -> Tensor:
    """The nearest point of {β ≥ 0, Σ_k β ≤ 1} for each block: clip, or project onto the simplex (Duchi et al.
    2008)."""
    clipped_KB = beta_KB.clamp(min=0)
    sorted_KB = beta_KB.sort(0, descending=True).values
    counts_K1 = torch.arange(1, len(beta_KB) + 1, dtype=beta_KB.dtype)[:, None]
    thresholds_KB = (sorted_KB.cumsum(0) - 1) / counts_K1
    last_B = (sorted_KB > thresholds_KB).sum(0).clamp(min=1) - 1
    on_simplex_KB = (beta_KB - thresholds_KB.gather(0, last_B[None])).clamp(min=0)
    return torch.where(clipped_KB.sum(0) <= 1, clipped_KB, on_simplex_KB)
