"""Recipe of `soupkit evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from soupkit.recipe.fields import argument, option
from soupkit.recipe.shared import DataOptions, ModelOptions, ScoreOptions


@dataclass(frozen=True, kw_only=True)
class Evaluate(DataOptions, ModelOptions, ScoreOptions):
    """Score checkpoints on held-out and test data, and compare them pairwise with a baseline.

    Example: soupkit evaluate soups/greedy runs/sweep --data digits --baseline soups/uniform
    """

    refs: tuple[str, ...] = argument(help="checkpoints")
    split: Literal["held_out", "test", "both"] = option("both", help="which examples")
    baseline: str | None = option(None, help="the checkpoint to compare with; default: the first")
    ensemble: Literal["none", "logits", "softmax"] = option(
        "none", help="also score the ensemble that averages the logits or probabilities of all checkpoints"
    )
    out: Path | None = option(None, help="directory for scores.json, scores.csv and the manifest")
    overwrite: bool = option(False, help="replace an earlier output of soupkit in --out")
