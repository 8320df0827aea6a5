"""A sweep in a process of its own, to be killed: python sweep_process.py BASE OUT."""

from __future__ import annotations

import sys
from pathlib import Path

from train.small import sweep_recipe

from soupkit.events import silent
from soupkit.world import World

if __name__ == "__main__":
    from soupkit.jobs.sweep import finetune_sweep

    base, out = sys.argv[1:]
    finetune_sweep(sweep_recipe(Path(base), Path(out), jobs=2, num_runs=5, epochs="6"), World("cpu"), silent)
