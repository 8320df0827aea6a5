"""The training loop of one model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from soupkit.errors import DivergedError
from soupkit.events import Advanced, Finished, Measured, Report, Started, Warned
from soupkit.jsons import Json
from soupkit.recipe.train import Finetune
from soupkit.task.epochs import num_batches
from soupkit.task.randomness import Stream, seeded
from soupkit.task.task import Batch, Task
from soupkit.train.averaging import Averaging
from soupkit.train.optimize import build_optimizer, build_schedule
from soupkit.train.probe import Probe

NUM_REPORTS = 200
SKIPPED = "their gradients were not finite in float16"
HOPELESS = 64
"""Skipped updates in a row, from the first on, after which the scaler (65,536, halved each time) has no range
left."""
LOWER_RATE = "lower the learning rate, clip the gradient (--clip-grad 1), or warm up for longer"


@dataclass(frozen=True)
class Fitted:
    """What became of a training: the mean loss of every epoch, and the updates that the scaler of float16
    skipped."""

    losses: list[float]
    num_skipped: int = 0

    @property
    def notes(self) -> Json:
        """What a manifest notes of it."""
        return {"loss": self.losses} | ({"num_skipped": self.num_skipped} if self.num_skipped else {})


def fit(
    task: Task,
    recipe: Finetune,
    *,
    report: Report,
    averages: Iterable[Averaging] = (),
    after_epoch: Callable[[int], None] = lambda _: None,
) -> Fitted:
    """Train a task's model in place; returns the mean training loss of every epoch, and how much was skipped.

    The learning rate moves with every update. On the CPU the same recipe and number of threads give the same
    bits. Leaves the model in eval mode, and global generators as they were. averages: averages of this
    model's weights, updated along. after_epoch: called with 1, 2, … when an epoch is over; it may read the
    model.
    Raises DivergedError as soon as an epoch's loss, or a trained weight, is not finite; RecipeError for the
    optimizer.
    """
    model, device = task.model, task.device
    per_epoch = num_batches(len(task.train), recipe.batch_size)
    num_updates = recipe.epochs * per_epoch
    _lay_out(model, torch.channels_last).train()  # as the batches of images lie; other weights stay
    probe = Probe(model) if recipe.trainable == "head" else None
    if probe:
        probe.switch(probing=True)
    update = Updater(task, recipe, num_updates=num_updates, updates_per_epoch=per_epoch)
    averages = list(averages)
    for average in averages:
        average.attach(update.optimizer)
    batches = task.training(recipe)
    progress = Progress(report, num_updates)
    losses: list[float] = []
    with seeded(recipe.seed, Stream.FORWARD, device=device):
        for epoch in range(1, recipe.epochs + 1):
            total, count = torch.zeros((), dtype=torch.float64, device=device), 0
            for _, batch in islice(batches, per_epoch):
                total += update(batch) * len(batch)
                count += len(batch)
                if update.stepped:
                    for average in averages:
                        average.update()
                last = f", loss {losses[-1]:.3f}" if losses else ""
                progress.advance(f"epoch {epoch}/{recipe.epochs}{last}")
            losses.append(_checked_loss(float(total) / count, epoch=epoch, epochs=recipe.epochs))
            report(Measured("train/loss", losses[-1], update.num_done))
            report(Measured("train/lr", update.optimizer.param_groups[-1]["lr"], update.num_done))
            after_epoch(epoch)
    update.check_skipped()
    if update.num_skipped:
        report(Warned(f"{update.num_skipped} of {update.num_tried} updates were skipped: {SKIPPED}"))
    _check_weights(model)
    report(Finished("train"))
    if probe:
        probe.switch(probing=False)
    _lay_out(model, torch.contiguous_format).eval()
    return Fitted(losses, update.num_skipped)


def amp_dtype(recipe: Finetune, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision; None: float32 throughout. auto: bfloat16 on CUDA, whose range needs no
    scaling."""
    if recipe.amp == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[recipe.amp]


def precision(recipe: Finetune, device: torch.device) -> AbstractContextManager[None]:
    """The context that forward passes run in: mixed precision where the recipe asks for it."""
    dtype = amp_dtype(recipe, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    return model.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


class Updater:
    """What turns a batch into one update of a model: optimizer, learning-rate schedule, scaler of mixed
    precision.

    num_done: updates so far. num_skipped: batches whose gradient overflowed in float16, so that the scaler
    left the weights as they were: they move neither the schedule nor an average. stepped: whether the last
    batch made an update. parameters: those that are trained. task: whose loss is differentiated.
    """

    def __init__(self, task: Task, recipe: Finetune, *, num_updates: int, updates_per_epoch: int) -> None:
        self.task, self.recipe, model = task, recipe, task.model
        self.optimizer = build_optimizer(model, recipe)
        self.schedule = build_schedule(
            self.optimizer, recipe, num_updates=num_updates, updates_per_epoch=updates_per_epoch
        )
        scaled = amp_dtype(recipe, task.device) is torch.float16
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=scaled)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.num_done = self.num_skipped = 0
        self.stepped = False

    @property
    def num_tried(self) -> int:
        """Batches so far: the place in the data, whatever became of them."""
        return self.num_done + self.num_skipped

    def __call__(self, batch: Batch, *, weight: float = 1.0) -> Tensor:
        """One update of the weights and of the learning rate; returns the mean loss before it.

        weight: multiplies the gradient, where this batch is one part of several.
        """
        self.optimizer.zero_grad()
        with precision(self.recipe, self.task.device):
            loss = self.task.loss(batch) / len(batch)
        self.scaler.scale(loss if weight == 1 else loss * weight).backward()  # type: ignore[no-untyped-call]
        self.descend()
        return loss.detach()

    def descend(self) -> None:
        """Step along the gradients that the parameters hold, and move the learning rate."""
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)  # the norm that is clipped is that of the true gradient
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.stepped = (
            0 < scale <= self.scaler.get_scale()
        )  # it is lowered when, and only when, a step is skipped
        if self.stepped:
            self.num_done += 1
            self.schedule.step_update(self.num_done)
            return
        self.num_skipped += 1
        if self.num_skipped >= HOPELESS:
            self.check_skipped()

    def check_skipped(self) -> None:
        """Raises DivergedError when nothing has been learned from any batch so far."""
        if self.num_skipped and not self.num_done:
            raise DivergedError(
                f"all {self.num_skipped} updates were skipped: {SKIPPED}", hint="--amp bfloat16, or --amp off"
            )


class Progress:
    """Reports updates, a few at a time: at most NUM_REPORTS events. done: those of an earlier, interrupted
    run."""

    def __init__(self, report: Report, num_updates: int, *, done: int = 0) -> None:
        self.report, self.num_updates = report, num_updates
        self.num_done = self.num_reported = done
        report(Started("train", num_updates, "update"))
        if done:
            report(Advanced("train", done, "resumed"))

    def advance(self, note: str) -> None:
        self.num_done += 1
        ahead = self.num_done - self.num_reported
        if ahead * NUM_REPORTS >= self.num_updates or self.num_done == self.num_updates:
            self.report(Advanced("train", ahead, note))
            self.num_reported = self.num_done


def _checked_loss(loss: float, *, epoch: int, epochs: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError(f"the training loss became {loss} in epoch {epoch} of {epochs}", hint=LOWER_RATE)
    return loss


def _check_weights(model: nn.Module) -> None:
    """The last update of all may still spoil what every loss until then found well."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DivergedError(f"{name} is not finite after the last epoch", hint=LOWER_RATE)
