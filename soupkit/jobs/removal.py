"""`--drop-top`: what soups are worth without the best of their ingredients."""

from __future__ import annotations

from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import RecipeError
from soupkit.events import Report, Told, Warned
from soupkit.jobs.direction import decide_by
from soupkit.jobs.merge import recorded_metric
from soupkit.metrics import rank_key
from soupkit.recipe.merge import MergeGreedy


def without_the_best(checkpoints: list[Checkpoint], recipe: Any, report: Report) -> list[Checkpoint]:
    """Leave out the `drop_top` best by what their manifests record; a search goes on with the rest.

    Raises RecipeError where nothing is recorded, and where one is left: there is nothing to search among. Greedy, which
    starts from the best single, has found its soup then.
    """
    if not recipe.drop_top:
        return _several(checkpoints, recipe, report)
    if recipe.drop_top >= len(checkpoints):
        raise RecipeError(f"drop_top is {recipe.drop_top}, but there are {len(checkpoints)} checkpoints")
    if recipe.by.partition(".")[0] == "test":
        raise RecipeError(f"by is {recipe.by!r}: test data must not choose anything", hint="use --by held_out.top1")
    better = decide_by(recipe.by, recipe.by_direction, report, option="--by-direction")
    values = [recorded_metric(checkpoint.directory, recipe.by) for checkpoint in checkpoints]
    order = sorted(range(len(values)), key=lambda k: (rank_key(values[k], better), checkpoints[k].reference))
    best = order[: recipe.drop_top]
    report(Told(f"left out, best by {recipe.by}: {', '.join(checkpoints[k].reference for k in best)}"))
    return _several([checkpoint for k, checkpoint in enumerate(checkpoints) if k not in best], recipe, report)


def _several(checkpoints: list[Checkpoint], recipe: Any, report: Report) -> list[Checkpoint]:
    if len(checkpoints) > 1:
        return checkpoints
    words = f"a soup is searched for among two checkpoints or more, here is one: {checkpoints[0].reference}"
    if not isinstance(recipe, MergeGreedy):
        hint = "name more of them, as REF REF, a folder or a pattern; soupkit evaluate scores one"
        raise RecipeError(words, hint=hint)
    report(Warned(words))
    return checkpoints
