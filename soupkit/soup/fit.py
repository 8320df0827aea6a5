"""The loop that learned soups, MEHL and TWA share: point → loss and gradient → coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from soupkit.errors import DivergedError
from soupkit.events import Advanced, Finished, Report, Started, silent
from soupkit.jsons import Json
from soupkit.soup.coordinates import Coordinates
from soupkit.soup.journal import Journal
from soupkit.soup.live import LOWER_RATE, LiveModel
from soupkit.soup.schedule import Schedule, rate
from soupkit.soup.subspace import Subspace
from soupkit.task.task import Batch

GROWTH = 1000.0
"""A loss that is so many times that of the first step does not come back."""
LEAST_DIVERGED = 10.0
"""Nats: a loss below is no divergence, however small the first one was; a guess among a thousand costs
6.9."""

ReadBatches = Callable[[list[np.ndarray], int], Iterable[Batch]]
"""(indices of each piece, epoch) → one batch of each."""


@dataclass(frozen=True)
class Settings:
    """How coordinates are learned.

    batch_size: examples per step; piece: per forward and backward pass; clip_grad: largest norm of the
    gradient, 0 does not clip; clips: whose, the coordinates' or, before it is projected, the whole model's
    (as published for MEHL-Soup); warmup: share of the steps.
    """

    epochs: int
    batch_size: int
    lr: float
    piece: int
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.0
    schedule: Schedule = "constant"
    warmup: float = 0.0
    clip_grad: float = 0.0
    clips: Literal["coordinates", "model"] = "coordinates"
    seed: int = 0


@dataclass
class Learned:
    """What a run came to: mean losses and `after_epoch` scores of its epochs, and the loss of its first step.

    The coordinates are where it ended.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    first: float | None = None

    def check(self, loss: float) -> None:
        """Raise DivergedError when a step's loss is GROWTH times the first step's, and far beyond a guess."""
        self.first = loss if self.first is None else self.first
        limit = max(GROWTH * self.first, LEAST_DIVERGED)
        if loss > limit:
            raise DivergedError(
                f"the loss grew from {self.first:.4g} to {loss:.4g} while coefficients were learned",
                hint=LOWER_RATE,
            )


@dataclass
class Fit:
    """One run over some examples. `position` makes its order of examples its own."""

    coordinates: Coordinates
    subspace: Subspace
    model: LiveModel
    settings: Settings
    read: ReadBatches
    indices: np.ndarray
    position: tuple[int, ...] = ()
    journal: Journal = field(default_factory=lambda: Journal(None, ""))
    report: Report = silent

    def run(
        self,
        stage: str,
        *,
        stop_after: int | None = None,
        after_epoch: Callable[[], float] | None = None,
        before_epoch: Callable[[], object] | None = None,
        patience: int = 0,
        lower_is_better: bool = False,
    ) -> Learned:
        """Learn for `stop_after` epochs of a schedule made for `settings.epochs`.

        before_epoch is called with the model where an epoch starts; after_epoch scores where it ends, and
        first of all the start. With patience, the run ends once that many epochs brought no better score.
        Goes on from the journal's state of this stage. At the end the model is at the point of the
        coordinates. Raises DivergedError when the loss is not finite, or grew a thousandfold.
        """
        optimizer = self._optimizer()
        learned, epoch, step, total, start = self._resume(stage, optimizer)
        num_epochs = self.settings.epochs if stop_after is None else stop_after
        self.report(Started("learning", num_epochs - epoch, "epochs"))
        if after_epoch and not learned.scores:
            self.move()
            learned.scores.append(after_epoch())
        while epoch < num_epochs and not _is_stale(learned.scores, patience, lower_is_better):
            batches = self.model.cut(self._order(epoch), self.settings.batch_size)
            if before_epoch:
                self._at(start, before_epoch)
            for number in range(step, len(batches)):
                loss = self._step(optimizer, batches[number], epoch, number, len(batches))
                learned.check(loss)
                total += loss * len(batches[number])
                if self.journal.due and number + 1 < len(batches):
                    self._keep(stage, optimizer, learned, epoch, number + 1, total, start)
            learned.losses.append(total / len(self.indices))
            if after_epoch:
                self.move()
                learned.scores.append(after_epoch())
            epoch, step, total, start = epoch + 1, 0, 0.0, self._here()
            self._keep(stage, optimizer, learned, epoch, step, total, start)
            self.report(Advanced("learning", 1, f"loss {learned.losses[-1]:.4f}"))
        self.report(Finished("learning"))
        self.move()
        return learned

    def move(self) -> None:
        """Write the present point into the model."""
        beta, gamma = self.coordinates.point()
        self.subspace.point(beta, gamma, out=self.model.weights)
        self.model.moved()

    def _here(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.coordinates.parameters]

    def _go(self, place: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.coordinates.parameters, place, strict=True):
                parameter.copy_(value)

    def _at(self, place: list[Tensor], call: Callable[[], object]) -> None:
        """Call with the model at another place; a resumed epoch must see what its beginning saw."""
        here = self._here()
        self._go(place)
        self.move()
        call()
        self._go(here)

    def _order(self, epoch: int) -> np.ndarray:
        seed = [self.settings.seed, *self.position, epoch]
        return np.random.default_rng(seed).permutation(self.indices)

    def _step(
        self, optimizer: torch.optim.Optimizer, batch: np.ndarray, epoch: int, number: int, per_epoch: int
    ) -> float:
        """One update of the coordinates; returns the loss before it."""
        beta, gamma = self.coordinates.point()
        self.subspace.point(beta, gamma, out=self.model.weights)
        self.model.moved()
        optimizer.zero_grad()
        pieces = self.model.pieces(batch, self.settings.piece)
        temperature = self.coordinates.temperature
        loss = self.model.backward(self.read(pieces, epoch), num_examples=len(batch), temperature=temperature)
        if self.settings.clip_grad and self.settings.clips == "model":
            norm = torch.linalg.vector_norm(self.model.gradient)
            self.model.gradient.mul_((self.settings.clip_grad / (norm + 1e-6)).clamp(max=1))
        gradients = self.subspace.pullback(self.model.gradient)
        outputs = [
            (out, grad) for out, grad in zip((beta, gamma), gradients, strict=True) if out.requires_grad
        ]
        torch.autograd.backward([out for out, _ in outputs], [grad for _, grad in outputs])
        if self.settings.clip_grad and self.settings.clips == "coordinates":
            torch.nn.utils.clip_grad_norm_(self.coordinates.parameters, self.settings.clip_grad)
        factor = rate(
            self.settings.schedule,
            epoch * per_epoch + number,
            self.settings.epochs * per_epoch,
            warmup=self.settings.warmup,
            num_epochs=self.settings.epochs,
        )
        for group in optimizer.param_groups:
            group["lr"] = self.settings.lr * factor
        optimizer.step()
        self.coordinates.constrain()
        return loss

    def _optimizer(self) -> torch.optim.Optimizer:
        s, parameters = self.settings, self.coordinates.parameters
        if s.optimizer == "adamw":
            temperature = self.coordinates.temperature
            groups: list[Json] = [{"params": [each for each in parameters if each is not temperature]}]
            groups += (
                [] if temperature is None else [{"params": [temperature], "weight_decay": 0.0}]
            )  # 0 is no rest
            return torch.optim.AdamW(groups, lr=s.lr, weight_decay=s.weight_decay)
        return torch.optim.SGD(parameters, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay)

    def _keep(
        self,
        stage: str,
        optimizer: torch.optim.Optimizer,
        learned: Learned,
        epoch: int,
        step: int,
        total: float,
        start: list[Tensor],
    ) -> None:
        self.journal.keep(
            stage,
            {
                "coordinates": self._here(),
                "start": start,
                "optimizer": optimizer.state_dict(),
                "losses": list(learned.losses),
                "scores": list(learned.scores),
                "first": learned.first,
                "epoch": epoch,
                "step": step,
                "total": total,
            },
        )

    def _resume(
        self, stage: str, optimizer: torch.optim.Optimizer
    ) -> tuple[Learned, int, int, float, list[Tensor]]:
        """What the run starts with: losses and scores, epoch, step, its loss so far, where it began."""
        state: Json | None = self.journal.state(stage)
        if state is None:
            return Learned(), 0, 0, 0.0, self._here()
        self._go(state["coordinates"])
        optimizer.load_state_dict(state["optimizer"])
        learned = Learned(state["losses"], state["scores"], state["first"])
        return learned, state["epoch"], state["step"], state["total"], state["start"]


def _is_stale(scores: list[float], patience: int, lower_is_better: bool) -> bool:
    """Whether the best score is `patience` epochs old."""
    if not patience or not scores:
        return False
    best = np.argmin(scores) if lower_is_better else np.argmax(scores)
    return len(scores) - 1 - int(best) >= patience


def best_epoch(
    scores_per_fold: list[list[float]], *, lower_is_better: bool = False
) -> tuple[int, list[float]]:
    """How many epochs to learn for, from none: where the mean score over folds is best; and those means.

    Of equals the earliest. A fold that ended early counts with its last score from then on.
    """
    length = max(map(len, scores_per_fold))
    filled = [scores + scores[-1:] * (length - len(scores)) for scores in scores_per_fold]
    means = np.mean(filled, 0)
    return int(np.argmin(means) if lower_is_better else np.argmax(means)), means.tolist()


def folds(num_examples: int, num_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(learn, score) indices of each fold; every example is scored once."""
    parts = np.array_split(np.random.default_rng([seed, num_folds]).permutation(num_examples), num_folds)
    everything = np.arange(num_examples)
    return [(np.setdiff1d(everything, part), np.sort(part)) for part in parts]
