"""A merge by the table of methods: opened, checked, run."""

from __future__ import annotations

from collections.abc import Callable

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.events import Report, Warned
from soupkit.jsons import Json, JsonView
from soupkit.merge.mixture import BATCH_NORM_STATISTICS
from soupkit.recipe.method_options import MethodRecipe
from soupkit.stages.methods.inputs import MethodInputs
from soupkit.stages.methods.opened import MethodMerge, open_merge
from soupkit.stages.outputs.soup import Record, write_soup
from soupkit.world import World

NOTHING_TO_ADD = Record()


def write_merge(
    recipe: MethodRecipe,
    world: World,
    report: Report,
    *,
    record: Record = NOTHING_TO_ADD,
    measure: Callable[[Checkpoint], JsonView] | None = None,
) -> Json:
    """Merge checkpoints by the method that the recipe names; record and measure are for `write_soup`."""
    merge = open_merge(recipe, report)
    if recipe.dry_run:
        from soupkit.stages.methods.plan import show_method_plan

        return show_method_plan(merge, recipe, world, report)
    _warn_of_statistics(merge, recipe, report)
    command = f"merge {recipe.METHOD}"
    record = _with_groups(record, merge.inputs)
    return write_soup(
        merge.ingredients,
        merge.engine(),
        recipe,
        world,
        report,
        command=command,
        record=record,
        measure=measure,
    )


def _with_groups(record: Record, inputs: MethodInputs) -> Record:
    """Which checkpoints each reference stands for, where that is not one each: a model and an adapter on
    it."""
    if inputs.groups == tuple((place,) for place in range(len(inputs.groups))):
        return record
    return Record(record.trace, {**record.notes, "references": [list(group) for group in inputs.groups]})


def _warn_of_statistics(merge: MethodMerge, recipe: MethodRecipe, report: Report) -> None:
    """A mean of batch-norm statistics is nearly right; what becomes of them by trimming or drawing is not."""
    names = [
        name for name in merge.ingredients.plan.slots if name.rpartition(".")[2] in BATCH_NORM_STATISTICS
    ]
    if names and merge.inputs.base is not None:
        report(
            Warned(
                f"{len(names)} batch-norm statistics are merged like weights, for example {names[0]}: "
                f"re-estimate them with soupkit merge uniform {recipe.out} --bn refresh --data … --out …"
            )
        )
