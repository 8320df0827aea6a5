"""Which way is better for a command that chooses: decided once, before anything is scored, and told."""

from __future__ import annotations

from typing import Literal

from soupkit import metrics
from soupkit.events import Report, Told, Warned
from soupkit.metrics import Direction
from soupkit.recipe.shared import ScoreOptions


def decide(recipe: ScoreOptions, report: Report) -> Direction:
    """The direction of a recipe with ScoreOptions. Raises RecipeError or TaskError where nothing says it.

    An external score without a name is called `score`, and higher is better; that is told.
    """
    metric = metrics.metric_of(recipe)
    if not recipe.score_command:
        from soupkit.task.images.metrics import direction_of  # knows whether soupkit computes it

        direction_of(metric)
    elif recipe.metric is None and recipe.direction == "auto":
        report(
            Told(
                "the scorer's number has no name: it is called score, and higher is better (--metric, "
                "--direction)"
            )
        )
    return _warned(metric, recipe.direction, report)


def decide_by(path: str, asked: Literal["auto", "max", "min"], report: Report, *, option: str) -> Direction:
    """The direction of a recorded metric, `held_out.perplexity`. Raises RecipeError where nothing says it."""
    return _warned(path.rpartition(".")[2], asked, report, option=option)


def _warned(
    metric: str, asked: Literal["auto", "max", "min"], report: Report, *, option: str = "--direction"
) -> Direction:
    if warning := metrics.contradiction(metric, asked):
        report(Warned(warning))
    return metrics.direction_of(metric, asked, option=option)
