"""`--drop-top`: what soups are worth without the best of their ingredients."""

from __future__ import annotations

from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import RecipeError
from soupkit.events import Report, Told
from soupkit.jobs.direction import decide_by
from soupkit.jobs.merge import recorded_metric
from soupkit.metrics import rank_key


def without_the_best(checkpoints: list[Checkpoint], recipe: Any, report: Report) -> list[Checkpoint]:
    """Leave out the `drop_top` best by what their manifests record. Raises RecipeError where nothing is recorded."""
    if not recipe.drop_top:
        return checkpoints
    if recipe.drop_top >= len(checkpoints):
        raise RecipeError(f"drop_top is {recipe.drop_top}, but there are {len(checkpoints)} checkpoints")
    if recipe.by.partition(".")[0] == "test":
        raise RecipeError(f"by is {recipe.by!r}: test data must not choose anything", hint="use --by held_out.top1")
    better = decide_by(recipe.by, recipe.by_direction, report, option="--by-direction")
    values = [recorded_metric(checkpoint.directory, recipe.by) for checkpoint in checkpoints]
    order = sorted(range(len(values)), key=lambda k: (rank_key(values[k], better), checkpoints[k].reference))
    best = order[: recipe.drop_top]
    report(Told(f"left out, best by {recipe.by}: {', '.join(checkpoints[k].reference for k in best)}"))
    return [checkpoint for k, checkpoint in enumerate(checkpoints) if k not in best]
