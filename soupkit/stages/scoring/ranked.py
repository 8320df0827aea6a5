"""Checkpoints by what their manifests record: `--top` keeps the best, `--drop-top` leaves them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import RecipeError
from soupkit.events import Report, Told, Warned
from soupkit.manifest import Manifest
from soupkit.metrics import rank_key
from soupkit.recipe.merge import MergeGreedy, MergeUniform
from soupkit.recipe.shared import DropOptions
from soupkit.stages.scoring.direction import decide_by


def without_the_best(checkpoints: list[Checkpoint], recipe: DropOptions, report: Report) -> list[Checkpoint]:
    """Leave out the `drop_top` best by what their manifests record; a search goes on with the rest.

    Raises RecipeError where nothing is recorded, and where one is left: there is nothing to search among.
    Greedy, which starts from the best single, has found its soup then.
    """
    if not recipe.drop_top:
        return _several(checkpoints, recipe, report)
    if recipe.drop_top >= len(checkpoints):
        raise RecipeError(f"drop_top is {recipe.drop_top}, but there are {len(checkpoints)} checkpoints")
    if recipe.by.partition(".")[0] == "test":
        raise RecipeError(
            f"by is {recipe.by!r}: test data must not choose anything", hint="use --by held_out.top1"
        )
    better = decide_by(recipe.by, recipe.by_direction, report, option="--by-direction")
    values = [recorded_metric(checkpoint.directory, recipe.by) for checkpoint in checkpoints]
    order = sorted(range(len(values)), key=lambda k: (rank_key(values[k], better), checkpoints[k].reference))
    best = order[: recipe.drop_top]
    report(Told(f"left out, best by {recipe.by}: {', '.join(checkpoints[k].reference for k in best)}"))
    return _several([checkpoint for k, checkpoint in enumerate(checkpoints) if k not in best], recipe, report)


def _several(checkpoints: list[Checkpoint], recipe: DropOptions, report: Report) -> list[Checkpoint]:
    if len(checkpoints) > 1:
        return checkpoints
    words = f"a soup is searched for among two checkpoints or more, here is one: {checkpoints[0].reference}"
    if not isinstance(recipe, MergeGreedy):
        hint = "name more of them, as REF REF, a folder or a pattern; soupkit evaluate scores one"
        raise RecipeError(words, hint=hint)
    report(Warned(words))
    return checkpoints


def recorded_metric(directory: Path, path: str) -> float:
    """A metric out of a checkpoint's manifest: `held_out.top1`. Raises RecipeError when it is not there."""
    manifest = Manifest.read_if_any(directory)
    node: Any = manifest.metrics if manifest else {}
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    value = node.get("value") if isinstance(node, dict) else node
    if not isinstance(value, int | float):
        raise RecipeError(
            f"{directory}: its soupkit.json records no metric {path!r}",
            hint="score the checkpoints first, or leave --top out",
        )
    return float(value)


def best_of(checkpoints: Sequence[Checkpoint], recipe: MergeUniform, report: Report) -> list[Checkpoint]:
    """The `top` best checkpoints by a metric that their manifests record. Raises RecipeError where one
    records none."""
    assert recipe.top is not None
    if recipe.top > len(checkpoints):
        raise RecipeError(
            f"top is {recipe.top}, but there are {len(checkpoints)} checkpoints", hint="lower --top"
        )
    if recipe.by.partition(".")[0] == "test":
        raise RecipeError(
            f"by is {recipe.by!r}: test data must not choose anything",
            hint="use --by held_out.top1, or another split",
        )
    better = decide_by(recipe.by, recipe.direction, report, option="--direction")
    values = [recorded_metric(checkpoint.directory, recipe.by) for checkpoint in checkpoints]
    order = sorted(range(len(values)), key=lambda k: rank_key(values[k], better))[: recipe.top]
    report(
        Told(
            f"best {recipe.top} by {recipe.by}: "
            + ", ".join(f"{checkpoints[k].reference} {values[k]:.4g}" for k in order)
        )
    )
    return [checkpoints[k] for k in sorted(order)]
