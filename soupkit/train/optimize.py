"""The optimizer and its learning-rate schedule, both from timm's factories."""

from __future__ import annotations

import difflib
import math
from typing import Protocol

import timm.optim
import timm.scheduler
import torch
from torch import nn

from soupkit.errors import RecipeError
from soupkit.recipe.train import Finetune
from soupkit.train.averages import swa_start

SCHEDULES = {
    "cosine": "cosine",
    "multistep": "multistep",
    "constant": "multistep",
}  # without milestones it stays


def build_optimizer(model: nn.Module, recipe: Finetune) -> torch.optim.Optimizer:
    """timm's optimizer of that name; biases and normalisation weights are not decayed.

    layer_decay: the learning rate of each layer is this factor times that of the layer above (Clark et al.
    2020, arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254). Raises RecipeError for an unknown optimizer,
    and when layer_decay would do nothing.
    """
    known = timm.optim.list_optimizers()
    if recipe.optimizer not in known:
        close = difflib.get_close_matches(recipe.optimizer, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "timm.optim.list_optimizers() lists them"
        raise RecipeError(f"optimizer {recipe.optimizer!r} is not one of timm's", hint=hint)
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            layer_decay=recipe.layer_decay,
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"optimizer {recipe.optimizer!r} cannot be made: {error}") from error
    if (
        recipe.layer_decay not in (None, 1)
        and len({group.get("lr_scale") for group in optimizer.param_groups}) < 2
    ):
        raise RecipeError(
            "layer_decay has no effect: timm knows no layers in this model", hint="--layer-decay none"
        )
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer, recipe: Finetune, *, num_updates: int, updates_per_epoch: int
) -> Schedule:
    """The learning rate of update u in 0 … num_updates − 1; call `step_update(u + 1)` after update u.

    With W warmup updates and T = num_updates: lr·(u + 1)/(W + 1) for u < W, so that no update is wasted on a
    rate of zero; then, cosine, min_lr + (lr − min_lr)·(1 + cos(π(u − W)/(T − W)))/2, or multistep,
    lr·decay_rate^m from update milestones[m − 1]·T on, or constant, lr. Warmup takes at most half of the
    training. With swa_lr, the rate leaves all this where SWA begins.
    """
    num_warmup = warmup_updates(recipe, num_updates=num_updates, updates_per_epoch=updates_per_epoch)
    schedule: Schedule = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=SCHEDULES[recipe.schedule],
        num_epochs=num_updates - num_warmup,
        warmup_epochs=num_warmup,
        warmup_lr=recipe.lr / (num_warmup + 1),
        warmup_prefix=True,
        min_lr=recipe.min_lr,
        # timm counts updates from 1 here, after the warmup
        decay_milestones=[round(share * num_updates) - num_warmup + 1 for share in _milestones(recipe)],
        decay_rate=recipe.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=1,
    )[0]
    if recipe.swa_start is None or recipe.swa_lr is None:
        return schedule
    start = swa_start(recipe, epochs=recipe.epochs, updates_per_epoch=updates_per_epoch)
    anneal = round(recipe.swa_anneal_epochs * updates_per_epoch)
    return SwaSchedule(schedule, optimizer, start=start, anneal=anneal, lr=recipe.swa_lr)


class Schedule(Protocol):
    """Sets the learning rates of an optimizer."""

    def step_update(self, num_updates: int) -> None:
        """Set them for the update after `num_updates` of them."""


class SwaSchedule:
    """Another schedule until SWA begins, then a cosine from where it stands to a constant rate, as torch's
    SWALR.

    (Izmailov et al. 2018, arXiv:1803.05407, §3.2.) With s updates before, the update s + i, i = 1, 2, …, has
    the rate lr_s + (lr − lr_s)·(1 − cos(π·min(i/anneal, 1)))/2. It depends on the number of updates alone, so
    it resumes.
    """

    def __init__(
        self, schedule: Schedule, optimizer: torch.optim.Optimizer, *, start: int, anneal: int, lr: float
    ) -> None:
        self.schedule, self.optimizer = schedule, optimizer
        self.start, self.anneal, self.lr = start, anneal, lr
        self.step_update(0)

    def step_update(self, num_updates: int) -> None:
        """Set the rates for the update after `num_updates` of them."""
        if num_updates or self.start == 0:
            self.schedule.step_update(min(num_updates, self.start))
        if num_updates < self.start:
            return
        share = min((num_updates - self.start + 1) / self.anneal, 1.0) if self.anneal else 1.0
        moved = (1 - math.cos(math.pi * share)) / 2
        for group in self.optimizer.param_groups:
            wanted = self.lr * group.get("lr_scale", 1.0)
            group["lr"] += (wanted - group["lr"]) * moved


def _milestones(recipe: Finetune) -> tuple[float, ...]:
    return recipe.milestones if recipe.schedule == "multistep" else ()


def warmup_updates(recipe: Finetune, *, num_updates: int, updates_per_epoch: int) -> int:
    """W: warmup_steps, or warmup_epochs in updates; at most half of all."""
    asked = recipe.warmup_steps
    return min(round(recipe.warmup_epochs * updates_per_epoch) if asked is None else asked, num_updates // 2)
