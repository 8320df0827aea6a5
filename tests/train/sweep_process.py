"""A sweep in a process of its own, to be killed; as a program: python sweep_process.py BASE OUT."""

from __future__ import annotations

import sys
from pathlib import Path

from train.small import sweep_recipe

from soupkit.events import silent
from soupkit.world import World

LONG = {"num_runs": 5, "epochs": "3"}


def sweep(base: Path, out: Path) -> None:
    """Five runs by two workers."""
    from soupkit.jobs.training.sweep import finetune_sweep

    finetune_sweep(sweep_recipe(base, out, jobs=2, **LONG), World("cpu"), silent)


if __name__ == "__main__":
    sweep(Path(sys.argv[1]), Path(sys.argv[2]))
