"""`--drop-top`: what soups are worth without the best of their ingredients."""

from __future__ import annotations

from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import RecipeError
from soupkit.events import Report, Told
from soupkit.jobs.merge import LOWER_IS_BETTER, recorded_metric


def without_the_best(checkpoints: list[Checkpoint], recipe: Any, report: Report) -> list[Checkpoint]:
    """Leave out the `drop_top` best by what their manifests record. Raises RecipeError where nothing is recorded."""
    if not recipe.drop_top:
        return checkpoints
    if recipe.drop_top >= len(checkpoints):
        raise RecipeError(f"drop_top is {recipe.drop_top}, but there are {len(checkpoints)} checkpoints")
    if recipe.by.partition(".")[0] == "test":
        raise RecipeError(f"by is {recipe.by!r}: test data must not choose anything", hint="use --by held_out.top1")
    sign = 1 if recipe.by.rpartition(".")[2] in LOWER_IS_BETTER else -1
    values = [sign * recorded_metric(checkpoint.directory, recipe.by) for checkpoint in checkpoints]
    best = sorted(range(len(values)), key=lambda k: (values[k], checkpoints[k].reference))[: recipe.drop_top]
    report(Told(f"left out, best by {recipe.by}: {', '.join(checkpoints[k].reference for k in best)}"))
    return [checkpoint for k, checkpoint in enumerate(checkpoints) if k not in best]
