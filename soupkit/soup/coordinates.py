"""What is learned: a few numbers, and how they become a point of a subspace. Learned soups, MEHL and TWA
differ here.

Coordinates are float64 leaf tensors; autograd takes ∂L/∂(β, γ), which `Subspace.pullback` gives, back to
them. Shape suffixes: K directions, B blocks.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Coordinates(Protocol):
    """A parametrisation of the points of a subspace."""

    @property
    def parameters(self) -> list[Tensor]:
        """The leaf tensors that an optimizer moves."""

    @property
    def temperature(self) -> Tensor | None:
        """β, what the logits are multiplied by in the loss; None for one."""

    def point(self) -> tuple[Tensor, Tensor]:
        """(β float64[K, B], γ float64[B]) of the present coordinates, differentiable."""

    def constrain(self) -> None:
        """Bring the coordinates back into what is allowed; called after each step."""
