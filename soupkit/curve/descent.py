"""Descent with a learning rate of one's own: the loop that curves and cyclical schedules share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from soupkit.curve.schedule import Rate
from soupkit.errors import TaskError
from soupkit.events import Advanced, Finished, Report, Started
from soupkit.task.task import Batch

LOWER_RATE = "lower the learning rate, or clip the gradient: --clip-grad 1"
NUM_REPORTS = 200


class Place(Protocol):
    """Where a batch stands in a training, from zero."""

    @property
    def epoch(self) -> int: ...
    @property
    def number(self) -> int: ...


Gradient = Callable[[Place, Batch], Tensor]
"""(place in the training, batch) → the mean loss, detached; the optimizer's parameters got their
gradients."""


@dataclass
class Descent:
    """Updates of an optimizer's parameters, and how far they have come.

    gradient: see Gradient. rate: the learning rate of each update. losses: the mean of every finished epoch.
    num_done: updates so far; both are set by who continues an earlier descent.
    """

    gradient: Gradient
    optimizer: torch.optim.Optimizer
    rate: Rate
    updates_per_epoch: int
    num_epochs: int
    clip_grad: float = 0.0
    num_done: int = 0
    losses: list[float] = field(default_factory=list)

    @property
    def num_updates(self) -> int:
        """All that there are to do."""
        return self.updates_per_epoch * self.num_epochs

    def run(
        self,
        batches: Iterable[tuple[Place, Batch]],
        report: Report,
        *,
        after: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Make the updates that are left; `after(num_done)` is called after each.

        Raises TaskError as soon as an epoch's mean loss is not finite.
        """
        report(Started("train", self.num_updates - self.num_done, "update"))
        total, count, reported = torch.zeros((), dtype=torch.float64), 0, self.num_done
        for place, batch in batches:
            loss = self._update(place, batch)
            total = total.to(loss.device) + loss * len(batch)
            count += len(batch)
            if self.num_done % self.updates_per_epoch == 0:
                self.losses.append(self._checked(float(total) / count))
                total, count = torch.zeros_like(total), 0
            after(self.num_done)
            if (
                self.num_done - reported
            ) * NUM_REPORTS >= self.num_updates or self.num_done == self.num_updates:
                report(Advanced("train", self.num_done - reported, self._note()))
                reported = self.num_done
        report(Finished("train"))

    def _update(self, place: Place, batch: Batch) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.num_done) * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad()
        loss = self.gradient(place, batch)
        if self.clip_grad:
            nn.utils.clip_grad_norm_(_parameters(self.optimizer), self.clip_grad)
        self.optimizer.step()
        self.num_done += 1
        return loss

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            epoch = len(self.losses) + 1
            raise TaskError(
                f"the training loss became {loss} in epoch {epoch} of {self.num_epochs}", hint=LOWER_RATE
            )
        return loss

    def _note(self) -> str:
        epoch = math.ceil(self.num_done / self.updates_per_epoch)
        return f"epoch {epoch}/{self.num_epochs}" + (f", loss {self.losses[-1]:.3f}" if self.losses else "")


def _parameters(optimizer: torch.optim.Optimizer) -> Sequence[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
