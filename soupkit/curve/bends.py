"""The weights of a curve in training: bends, the point between them, and what the point's gradient says to
each bend.

Shape suffixes: B bends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from soupkit.curve.curve import Curve
from soupkit.task.task import Batch, Task

Weights = Sequence[Tensor]
"""The parameters of a model, in its own order."""


class Bends(nn.Module):
    """The bends of a curve between two ends, as the parameters of a module that an optimizer can be given.

    Inner bends start on the straight line, w_j = (1 − s) w_0 + s w_{B−1} with s = j/(B − 1). A fixed end does
    not move. Memory: B copies of the weights.
    """

    def __init__(self, start: Weights, end: Weights, curve: Curve, *, fix_start: bool, fix_end: bool) -> None:
        super().__init__()
        self.curve = curve
        last = curve.num_bends - 1
        self.trained = [
            not ((j == 0 and fix_start) or (j == last and fix_end)) for j in range(curve.num_bends)
        ]
        self.bends: list[list[nn.Parameter]] = []
        for j, trained in enumerate(self.trained):
            self.bends.append([])
            for i, (a, b) in enumerate(zip(start, end, strict=True)):
                weight = nn.Parameter(_between(a, b, j, last), requires_grad=trained and a.requires_grad)
                self.register_parameter(f"bend_{j}_{i}", weight)
                self.bends[j].append(weight)

    @torch.no_grad()
    def point(self, t: float) -> list[Tensor]:
        """w(t) as new tensors that record gradients where the model's own parameters did."""
        used = [
            (c, bend)
            for c, bend in zip(self.curve.coefficients(t).tolist(), self.bends, strict=True)
            if c != 0
        ]
        points = [weight.clone() if used[0][0] == 1 else weight * used[0][0] for weight in used[0][1]]
        for coefficient, bend in used[1:]:
            for total, weight in zip(points, bend, strict=True):
                total.add_(weight, alpha=coefficient)
        return points

    @torch.no_grad()
    def take_gradient(self, t: float, point: Weights, *, weight_decay: float) -> None:
        """Give every trained bend its gradient, c_j(t) (∂L/∂w(t) + weight_decay · w(t)): the chain rule.

        The loss is L(w(t)) + ½ weight_decay ‖w(t)‖² at the sampled point, as in the paper's code. Needs one
        backward pass through the model, whatever B is.
        """
        for weight in point:
            if weight.grad is not None and weight_decay:
                weight.grad.add_(weight, alpha=weight_decay)
        for coefficient, trained, bend in zip(
            self.curve.coefficients(t), self.trained, self.bends, strict=True
        ):
            for own, weight in zip(bend if trained else (), point, strict=False):
                own.grad = None if weight.grad is None else weight.grad * float(coefficient)

    @torch.no_grad()
    def write_into(self, model: nn.Module, bend: int) -> None:
        """Copy one bend into the parameters of `model`."""
        for target, source in zip(model.parameters(), self.bends[bend], strict=True):
            target.copy_(source)


class _Loss(nn.Module):
    """A task's loss as the forward pass of a module that holds its model."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model, self.loss = task.model, task.loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(batch)


class CurvePoint:
    """A task whose weights are a point of a curve: forward and backward there, at one t after another.

    `functional_call` puts the point in the place of the parameters, so any nn.Module will do. Batch-norm
    statistics are the model's own, shared by all points; its parameters stay as they are.
    """

    def __init__(self, task: Task, bends: Bends) -> None:
        self.loss, self.bends = _Loss(task), bends
        self.names = [name for name, _ in self.loss.named_parameters()]
        self.learns = [parameter.requires_grad for parameter in self.loss.parameters()]

    def at(self, t: float) -> list[Tensor]:
        """w(t), ready to be differentiated."""
        return [w.requires_grad_(learns) for w, learns in zip(self.bends.point(t), self.learns, strict=True)]

    def __call__(self, point: Weights, batch: Batch) -> Tensor:
        """The task's loss at a point, summed over the batch."""
        loss: Tensor = functional_call(self.loss, dict(zip(self.names, point, strict=True)), (batch,))
        return loss


def _between(a: Tensor, b: Tensor, j: int, last: int) -> Tensor:
    """The j-th of `last` steps from a to b; the ends exactly."""
    if j in (0, last):
        return (b if j else a).detach().clone()
    return torch.lerp(a.detach(), b.detach(), j / last)
