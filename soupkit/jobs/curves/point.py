"""`curve point`, and what opens the directory of a curve."""

from __future__ import annotations

import dataclasses

from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.recipe.curve import CurvePoint
from soupkit.stages.inputs.curve import check_has_data, needs_refresh, open_curve
from soupkit.stages.outputs.soup import Record, prepare, show_plan, write_soup
from soupkit.world import World


def curve_point(recipe: CurvePoint, world: World, report: Report) -> Json:
    """Write the point at t: bit for bit an end at 0 and 1, else the mixture with its own batch-norm
    statistics."""
    curve, bends, _ = open_curve(recipe.curve)
    ingredients = prepare(bends, recipe, report)
    mixture = curve.mixture(recipe.at, ingredients.names)
    refresh = recipe.bn == "refresh" and needs_refresh(mixture, ingredients.plan.slots)
    if recipe.bn == "refresh" and not refresh:
        recipe = dataclasses.replace(
            recipe, bn="average"
        )  # as it is recorded, so that `reproduce` does the same
    if refresh:
        check_has_data(recipe)
    if recipe.dry_run:
        return show_plan(ingredients, recipe, world, report)
    replaced = None
    if refresh:
        from soupkit.stages.scoring.scoring import refreshed_statistics

        replaced = refreshed_statistics(ingredients, mixture, recipe, world, report)
    record = Record(notes={"curve": curve.to_json(), "at": recipe.at})
    return write_soup(
        ingredients, mixture, recipe, world, report, command="curve point", replaced=replaced, record=record
    )
