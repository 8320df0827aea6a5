"""A population in a process of its own, which kills itself in its N-th fsync."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

from train.population_small import ALONE, population_recipe

from soupkit.events import silent
from soupkit.recipe.population import TrainPopulation


def recipe(out: Path) -> TrainPopulation:
    """15 updates, a state after each; BatchNorm, momentum, mixup, late pulls."""
    return population_recipe(
        out=out, model="timm:test_resnet,img_size=32", num_members=2, num_train=48, num_held_out=60,
        num_test=50,
        epochs=5, mixup=(0.0, 0.3), average_every=3, async_average=1, decay=0.8, save_every=1, device="cpu",
    )  # fmt: skip


def train_until(out: Path, last: int) -> None:
    """Train, and die of SIGKILL in the fsync of that number; 0 is none."""
    from soupkit.jobs.training.population import train_population

    calls, fsync = itertools.count(1), os.fsync

    def fatal(descriptor: int) -> None:
        if next(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fatal
    train_population(recipe(out), ALONE, silent)
