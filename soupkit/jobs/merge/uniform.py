"""`merge uniform` and `merge weighted`."""

from __future__ import annotations

from soupkit.checkpoint.reference import open_references
from soupkit.checkpoint.seen import ranked_on
from soupkit.events import Report, Told
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture, by_tensor, keep_batch_norm, uniform, weighted
from soupkit.recipe.merge import MergeUniform, MergeWeighted
from soupkit.recipe.settings import Layers, check_matches, parse_settings, resolve
from soupkit.stages.alignment.merges import check_align_options, ingredients_to_merge, replaced_tensors
from soupkit.stages.outputs.soup import Ingredients, Record, open_ingredients, prepare, show_plan, write_soup
from soupkit.stages.scoring.ranked import best_of
from soupkit.world import World

NOTHING_TO_ADD = Record()


def merge_uniform(recipe: MergeUniform, world: World, report: Report) -> Json:
    """Average all ingredients, or the best N of them."""
    check_align_options(recipe)
    checkpoints = open_references(recipe.refs, stream=recipe.stream)
    record = NOTHING_TO_ADD
    if recipe.top is not None:
        record = Record(notes=ranked_on(checkpoints, recipe.by))
        checkpoints = best_of(checkpoints, recipe, report)
    ingredients = prepare(checkpoints, recipe, report)
    mixture = uniform(ingredients.names)
    if recipe.bn == "keep":
        mixture = keep_batch_norm(mixture, 0, ingredients.agreement.slots)
    if recipe.dry_run:
        return show_plan(ingredients, recipe, world, report)
    return _write(ingredients, mixture, recipe, world, report, command="merge uniform", record=record)


def merge_weighted(
    recipe: MergeWeighted, world: World, report: Report, *, record: Record = NOTHING_TO_ADD
) -> Json:
    """Combine the ingredients with the given coefficients."""
    check_align_options(recipe)
    ingredients = open_ingredients(recipe, report)
    mixture = weighted(ingredients.names, recipe.coefficients, normalize=recipe.normalize)
    if recipe.set:
        mixture = by_tensor(ingredients.names, _columns(recipe, ingredients), normalize=recipe.normalize)
    elif recipe.bn == "keep":
        mixture = keep_batch_norm(mixture, 0, ingredients.agreement.slots)
    total = max(mixture.matrix.sum(axis=0), key=lambda total: abs(total - 1))
    if abs(total - 1) > 1e-6:
        report(
            Told(f"the coefficients sum to {total:g}, not to 1: the weights are scaled (--normalize divides)")
        )
    if recipe.dry_run:
        return show_plan(ingredients, recipe, world, report)
    return _write(ingredients, mixture, recipe, world, report, command="merge weighted", record=record)


def _write(
    ingredients: Ingredients,
    mixture: Mixture,
    recipe: MergeUniform | MergeWeighted,
    world: World,
    report: Report,
    *,
    command: str,
    record: Record = NOTHING_TO_ADD,
) -> Json:
    """Align, refresh and repair where it is asked for, and write."""
    ingredients, alignment = ingredients_to_merge(ingredients, recipe, world, report)
    replaced, notes = replaced_tensors(ingredients, mixture, recipe, world, report)
    record = Record(notes={**record.notes, **alignment, **notes})
    return write_soup(
        ingredients, mixture, recipe, world, report, command=command, record=record, replaced=replaced
    )


def _columns(recipe: MergeWeighted, ingredients: Ingredients) -> dict[str, list[float]]:
    """The coefficients of every tensor under --set."""
    slots = ingredients.plan.slots
    settings = parse_settings(recipe.set, known=["coefficient"], references=ingredients.names)
    check_matches(settings, slots)
    layers, defaults = Layers.of(slots), {"coefficient": list(recipe.coefficients)}
    return {name: resolve(name, defaults, settings, layers)["coefficient"] for name in slots}
