"""`chain`: straight lines from checkpoint to checkpoint."""

from __future__ import annotations

from soupkit.checkpoint.reference import open_references
from soupkit.curve.curve import Curve, points
from soupkit.errors import RecipeError
from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.recipe.curve import Chain
from soupkit.stages.inputs.ordered import say_order
from soupkit.stages.scoring.path import evaluate_path
from soupkit.world import World


def chain(recipe: Chain, world: World, report: Report) -> Json:
    """Score points on the lines through the checkpoints in their order; writes what `curve evaluate` writes.

    A chain is a PolyChain whose bends are the checkpoints, with `num_points` on each line.
    """
    checkpoints = open_references(recipe.refs)
    say_order(recipe.refs, report)
    if len(checkpoints) < 2:
        raise RecipeError("refs name one checkpoint, expected at least two")
    lines = len(checkpoints) - 1
    return evaluate_path(
        Curve("polychain", len(checkpoints)),
        checkpoints,
        recipe,
        world,
        report,
        ts=points(lines * (recipe.num_points - 1) + 1),
        weight_decay=recipe.weight_decay,
        command="chain",
        title=f"chain of {len(checkpoints)} checkpoints",
        corners=[k / lines for k in range(1, lines)],
    )
