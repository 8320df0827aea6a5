"""What the result of a step will hold, as far as its recipe tells, so that an expectation is checked before
it runs.

A shape is a mapping from keys to shapes, with ANY_KEY for keys that are not known yet; None is a place of
which nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from soupkit.asked import Names, Plans, ReadsData, Tests
from soupkit.jsons import Json, JsonView
from soupkit.recipe.evaluate import Evaluate
from soupkit.recipe.shared import Metric

Shape = JsonView | None
ANY_KEY = "*"
_MANIFEST = (
    "command",
    "recipe",
    "inputs",
    "outputs",
    "mixture",
    "trace",
    "notes",
    "given",
    "format",
    "soupkit",
)
_SCORE: Shape = dict.fromkeys(("value", "standard_error", "num_examples"))
_SEARCHES = ("merge greedy", "merge evolve", "merge learned", "merge mehl", "merge twa")
_MAY_SCORE = (
    *_SEARCHES,
    "merge interpolate",
    "merge swa",
    "merge ema",
    "merge posthoc-ema",
    "merge trajectory",
    "merge mergekit",
)
_RESULTS: dict[str, tuple[str, ...]] = {
    "inspect": ("checkpoints",),
    "verify": ("directory", "checks"),
    "report": ("out", "bytes", "outputs"),
}
_UNKNOWN = ("diff", "env", "push", "pull", "reproduce", "cache", "demo", "methods")


def shape_of(command: str, recipe: object) -> Shape:
    """The shape of what a command returns; conditions also find `metrics` at the top."""
    if (isinstance(recipe, Plans) and recipe.dry_run) or command in _UNKNOWN:
        return None
    if command in _RESULTS:
        return dict.fromkeys(_RESULTS[command])
    metrics = _metrics(command, recipe)
    top = {ANY_KEY: None} if metrics is None else dict(metrics)
    return {**top, "metrics": metrics, **dict.fromkeys((*_MANIFEST, "versions", "created"))}


def _metrics(command: str, recipe: object) -> Shape:
    scored = _splits("held_out", "test")
    if command in ("finetune", "ensemble", "finetune-sweep"):
        names = {"ensemble": ("best_single", "logits", "softmax"), "finetune-sweep": (ANY_KEY,)}.get(
            command, ()
        )
        return dict.fromkeys(names, scored) if names else scored
    if isinstance(recipe, Evaluate):
        return _of_evaluate(recipe)
    outside = isinstance(recipe, Names) and bool(recipe.score_command)
    if command.startswith("merge "):
        scores = outside or (isinstance(recipe, ReadsData) and bool(recipe.data))
        if command not in _MAY_SCORE or (not scores and command != "merge mergekit"):
            return {}
    if command in _SEARCHES:
        if outside:
            return {"held_out": None}
        return scored if isinstance(recipe, Tests) and recipe.test else _splits("held_out")
    return None


def _of_evaluate(recipe: Evaluate) -> Shape:
    """{split: …} of one checkpoint, {reference: {split: …}} of several; a reference before the split always
    serves."""
    if recipe.score_command:
        splits: JsonView = {"external": None}
    else:
        splits = _splits(*(("held_out", "test") if recipe.split == "both" else (recipe.split,)))
    several = len(recipe.refs) > 1 or recipe.baseline or recipe.ensemble != "none"
    return {ANY_KEY: splits} if several else {**splits, ANY_KEY: splits}


def _splits(*names: str) -> Json:
    return dict.fromkeys(names, dict.fromkeys(get_args(Metric), _SCORE))


def missing(shape: Shape, keys: Sequence[str]) -> str | None:
    """Why there can be nothing at the place `keys`, None when there may be. A key may hold dots: keys are
    joined."""
    if shape is None:
        return None
    if not keys:
        return None if "value" in shape else "that is no number"
    whys = []
    for num in range(len(keys), 0, -1):
        key = ".".join(keys[:num])
        inner = [shape[name] for name in dict.fromkeys((key, ANY_KEY)) if name in shape]
        for each in inner:
            why = missing(each, keys[num:])
            if why is None:
                return None
            whys.append((num, why))
    if whys:
        return max(whys)[1]
    known = [name for name in shape if name != ANY_KEY]
    return f"there is no {keys[0]!r} (possible: {', '.join(known) or 'nothing'})"
