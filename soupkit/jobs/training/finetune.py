"""`finetune`: train one model and write it as a checkpoint that knows how it was made."""

from __future__ import annotations

from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.recipe.train import Finetune
from soupkit.stages.training.run import train_run
from soupkit.world import World


def finetune(recipe: Finetune, world: World, report: Report) -> Json:
    """Train on train, score the written checkpoint on held-out and test; returns its manifest.

    Raises TaskError, RecipeError or OutputError before training for whatever can be known then.
    """
    return train_run(recipe, world, report)
