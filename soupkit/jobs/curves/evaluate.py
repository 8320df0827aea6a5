"""`curve evaluate`, and what `chain` shares with it: score a path, write its numbers."""

from __future__ import annotations

from soupkit.curve.curve import points
from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.recipe.curve import CurveEvaluate
from soupkit.stages.inputs.curve import open_curve
from soupkit.stages.scoring.path import evaluate_path
from soupkit.world import World


def curve_evaluate(recipe: CurveEvaluate, world: World, report: Report) -> Json:
    """Score `num_points` points of a curve and write curve.npz, curve.json, curve.png; returns the
    manifest."""
    curve, bends, fitted = open_curve(recipe.curve)
    weight_decay = recipe.weight_decay
    if weight_decay is None:
        weight_decay = float(fitted.recipe.get("weight_decay", 0.0))
    title = f"{curve.kind} curve of {curve.num_bends} bends"
    return evaluate_path(
        curve,
        bends,
        recipe,
        world,
        report,
        ts=points(recipe.num_points),
        weight_decay=weight_decay,
        command="curve evaluate",
        title=title,
    )
