"""The training loop of one model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from soupkit.errors import TaskError
from soupkit.events import Advanced, Finished, Report, Started
from soupkit.recipe.train import Finetune
from soupkit.task.images import ImageSettings
from soupkit.train.batches import Labelled, finisher, loader, num_batches, train_transform
from soupkit.train.optimize import build_optimizer, build_schedule
from soupkit.train.randomness import Stream, seeded

NUM_REPORTS = 200
LOWER_RATE = "lower the learning rate, clip the gradient (--clip-grad 1), or warm up for longer"


@dataclass(frozen=True)
class TrainingData:
    """What is learned: the examples, how the model wants to see them, the classes, and whether they are characters."""

    examples: Labelled
    settings: ImageSettings
    num_classes: int
    characters: bool


def fit(model: nn.Module, data: TrainingData, recipe: Finetune, *, device: torch.device, report: Report) -> list[float]:
    """Train `model` in place on `device` and return the mean training loss of every epoch.

    Soft-target cross-entropy; the learning rate moves with every update. On the CPU the same recipe and number of
    threads give the same bits. Leaves the model in eval mode, and global generators as they were.
    Raises TaskError as soon as an epoch's loss, or a trained weight, is not finite; RecipeError for the optimizer.
    """
    per_epoch = num_batches(len(data.examples), recipe.batch_size)
    num_updates = recipe.epochs * per_epoch
    _lay_out(model.to(device), torch.channels_last).train()  # convolutions run up to 1.6 times as fast, on CPUs too
    update = _updater(model, recipe, device=device, num_updates=num_updates, updates_per_epoch=per_epoch)
    finish = finisher(data.settings, recipe, num_classes=data.num_classes, device=device)
    transform = train_transform(data.settings, recipe, characters=data.characters)
    batches = loader(data.examples, transform, recipe, pin_memory=device.type == "cuda")
    progress = _Progress(report, num_updates)
    losses: list[float] = []
    with seeded(recipe.seed, Stream.FORWARD, device=device):
        for epoch in range(1, recipe.epochs + 1):
            total, count = torch.zeros((), dtype=torch.float64, device=device), 0
            for place, pixels, targets in islice(batches, per_epoch):
                total += update(*finish(place, pixels, targets)) * len(pixels)
                count += len(pixels)
                progress.advance(f"epoch {epoch}/{recipe.epochs}" + (f", loss {losses[-1]:.3f}" if losses else ""))
            losses.append(_checked_loss(float(total) / count, epoch=epoch, epochs=recipe.epochs))
    _check_weights(model)
    report(Finished("train"))
    _lay_out(model, torch.contiguous_format).eval()
    return losses


def amp_dtype(recipe: Finetune, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision; None: float32 throughout. auto: bfloat16 on CUDA, whose range needs no scaling."""
    if recipe.amp == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[recipe.amp]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−Σ_c t_c log softmax(logits)_c, mean over the batch, in float32 whatever the logits' precision."""
    return nn.functional.cross_entropy(logits.float(), targets)


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    return model.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


def _updater(
    model: nn.Module, recipe: Finetune, *, device: torch.device, num_updates: int, updates_per_epoch: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """One update of the weights and of the learning rate: (images, soft targets) → the loss before it."""
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, num_updates=num_updates, updates_per_epoch=updates_per_epoch)
    dtype = amp_dtype(recipe, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_done = 0

    def update(images: Tensor, targets: Tensor) -> Tensor:
        nonlocal num_done
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = soft_cross_entropy(logits, targets)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if recipe.clip_grad:
            scaler.unscale_(optimizer)  # the norm that is clipped is that of the true gradient
            nn.utils.clip_grad_norm_(parameters, recipe.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        num_done += 1
        schedule.step_update(num_done)
        return loss.detach()

    return update


class _Progress:
    """Reports updates, a few at a time: at most NUM_REPORTS events."""

    def __init__(self, report: Report, num_updates: int) -> None:
        self.report, self.num_updates = report, num_updates
        self.num_done = self.num_reported = 0
        report(Started("train", num_updates, "update"))

    def advance(self, note: str) -> None:
        self.num_done += 1
        ahead = self.num_done - self.num_reported
        if ahead * NUM_REPORTS >= self.num_updates or self.num_done == self.num_updates:
            self.report(Advanced("train", ahead, note))
            self.num_reported = self.num_done


def _checked_loss(loss: float, *, epoch: int, epochs: int) -> float:
    if not math.isfinite(loss):
        raise TaskError(f"the training loss became {loss} in epoch {epoch} of {epochs}", hint=LOWER_RATE)
    return loss


def _check_weights(model: nn.Module) -> None:
    """The last update of all may still spoil what every loss until then found well."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise TaskError(f"{name} is not finite after the last epoch", hint=LOWER_RATE)
