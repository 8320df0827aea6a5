"""`--align`, `--repair` and `--bn refresh` of merges: what happens to ingredients before, and to a mixture
after.

Imports no torch: a merge with none of them stays free of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from soupkit.asked import Aligns, Streams
from soupkit.checkpoint.dtypes import Array
from soupkit.errors import RecipeError
from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture
from soupkit.stages.outputs.soup import Ingredients
from soupkit.world import World

if TYPE_CHECKING:
    from soupkit.stages.scoring.scoring import SoupTask


def check_align_options(recipe: Aligns) -> None:
    """Raise RecipeError for options that cannot work together, before anything is opened."""
    if recipe.repair != "off" and not recipe.data:
        raise RecipeError(
            "--repair needs --data", hint="name the training data; labels are used on held-out only"
        )
    if recipe.align and recipe.align_by != "weights" and not recipe.data:
        raise RecipeError(
            f"--align-by {recipe.align_by} needs --data", hint="name unlabelled images, or go by weights"
        )
    if isinstance(recipe, Streams) and recipe.stream and (recipe.align or recipe.repair != "off"):
        raise RecipeError(
            "stream reads ingredients once, --align and --repair read them often", hint="leave --stream out"
        )


def ingredients_to_merge(
    ingredients: Ingredients, recipe: Aligns, world: World, report: Report
) -> tuple[Ingredients, Json]:
    """With --align: views of the ingredients, permuted to match the first, and what the manifest notes of it.

    Raises AlignError, TaskError when the network cannot be followed or a permutation would change its
    function.
    """
    if not recipe.align:
        return ingredients, {}
    from soupkit.stages.alignment.permute import permuted_ingredients

    aligned = permuted_ingredients(
        ingredients.checkpoints, to=0, recipe=recipe, world=world, report=report, by=recipe.align_by
    )
    return replace(ingredients, checkpoints=aligned.views), {"alignment": aligned.notes}


def replaced_tensors(
    ingredients: Ingredients,
    mixture: Mixture,
    recipe: Aligns,
    world: World,
    report: Report,
    *,
    soup: SoupTask | None = None,
) -> tuple[Mapping[str, Array], Json]:
    """What --bn refresh and --repair put in the place of the mixture's tensors, and what the manifest notes
    of it.

    soup: the job's SoupTask, where it has one already. Raises TaskError, RecipeError.
    """
    if recipe.bn != "refresh" and recipe.repair == "off":
        return {}, {}
    if recipe.repair != "off":
        _check_convex(mixture)
    if soup is None and recipe.repair == "off":
        from soupkit.stages.scoring.scoring import refreshed_statistics

        return refreshed_statistics(ingredients, mixture, recipe, world, report), {}
    from soupkit.stages.alignment.repaired import repaired_mixture
    from soupkit.stages.inputs.seen import check_seen, fitted_on
    from soupkit.stages.scoring.scoring import SoupTask

    if soup is None:
        soup = SoupTask(ingredients, recipe, world)
        check_seen(ingredients.checkpoints, soup.task.splits, recipe, report, "held_out")
    refreshed = soup.load(mixture)
    if recipe.repair == "off":
        return refreshed, {}
    repaired, notes = repaired_mixture(soup, mixture, recipe, report)
    return {**refreshed, **repaired}, {"repair": notes, **fitted_on(soup)}


def _check_convex(mixture: Mixture) -> None:
    """REPAIR's target is a mean of the ingredients' statistics."""
    matrix = mixture.matrix
    if (matrix < 0).any() or not np.allclose(matrix.sum(axis=0), 1):
        raise RecipeError(
            "--repair needs coefficients of 0 or more that sum to one", hint="--normalize, or no --repair"
        )
