"""The optimizer and its learning-rate schedule, both from timm's factories."""

from __future__ import annotations

import difflib

import timm.optim
import timm.scheduler
import torch
from torch import nn

from soupkit.errors import RecipeError
from soupkit.recipe.train import Finetune

SCHEDULES = {"cosine": "cosine", "constant": "step"}  # a step schedule with factor 1 warms up and then stays


def build_optimizer(model: nn.Module, recipe: Finetune) -> torch.optim.Optimizer:
    """timm's optimizer of that name; biases and normalisation weights are not decayed.

    layer_decay: the learning rate of each layer is this factor times that of the layer above (Clark et al. 2020,
    arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254). Raises RecipeError for an unknown optimizer, and when
    layer_decay would do nothing.
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
    if recipe.layer_decay not in (None, 1) and len({group.get("lr_scale") for group in optimizer.param_groups}) < 2:
        raise RecipeError("layer_decay has no effect: timm knows no layers in this model", hint="--layer-decay none")
    return optimizer


def build_schedule(
    optimizer: torch.optim.Optimizer, recipe: Finetune, *, num_updates: int, updates_per_epoch: int
) -> timm.scheduler.scheduler.Scheduler:
    """The learning rate of update u in 0 … num_updates − 1; call `step_update(u + 1)` after update u.

    With W warmup updates and T = num_updates: lr·(u + 1)/(W + 1) for u < W, so that no update is wasted on a rate of
    zero; then, cosine, min_lr + (lr − min_lr)·(1 + cos(π(u − W)/(T − W)))/2, or constant, lr. Warmup takes at most
    half of the training.
    """
    num_warmup = warmup_updates(recipe, num_updates=num_updates, updates_per_epoch=updates_per_epoch)
    schedule, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=SCHEDULES[recipe.schedule],
        num_epochs=num_updates - num_warmup,
        warmup_epochs=num_warmup,
        warmup_lr=recipe.lr / (num_warmup + 1),
        warmup_prefix=True,
        min_lr=recipe.min_lr,
        decay_epochs=1,
        decay_rate=1.0,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule


def warmup_updates(recipe: Finetune, *, num_updates: int, updates_per_epoch: int) -> int:
    """W: warmup_epochs in updates, at most half of all."""
    return min(round(recipe.warmup_epochs * updates_per_epoch), num_updates // 2)
