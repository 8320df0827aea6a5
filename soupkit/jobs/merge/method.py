"""The merges of the table of methods: one job for all of them."""

from __future__ import annotations

from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.recipe.method_options import MethodRecipe
from soupkit.stages.methods.merge import NOTHING_TO_ADD, write_merge
from soupkit.stages.outputs.soup import Record
from soupkit.world import World


def merge_method(
    recipe: MethodRecipe, world: World, report: Report, *, record: Record = NOTHING_TO_ADD
) -> Json:
    """Merge checkpoints by the method that the recipe names; returns the manifest, with what `record`
    adds."""
    return write_merge(recipe, world, report, record=record)
