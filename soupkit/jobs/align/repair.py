"""`repair`, and `--repair` of merges: the statistics of a soup's units, made those of its ingredients."""

from __future__ import annotations

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.checkpoint.source import Source
from soupkit.errors import CheckpointError, RecipeError
from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.merge.mixture import Mixture
from soupkit.recipe.align import Repair
from soupkit.stages.alignment.repaired import repaired
from soupkit.stages.inputs.recorded import open_as_recorded
from soupkit.stages.inputs.seen import check_seen, chosen_on
from soupkit.stages.outputs.soup import Record, copying, plan_soup, show_plan, write_soup
from soupkit.stages.scoring.scoring import measured, rounded, training_batches
from soupkit.task.images.task import ImageTask, open_task
from soupkit.world import World

COMMAND = "repair"


def repair(recipe: Repair, world: World, report: Report) -> Json:
    """Repair a written soup by what its manifest records of its ingredients; returns the manifest of the
    output.

    Raises CheckpointError when the manifest records no mixture, TaskError for a model or data that cannot be
    used.
    """
    soup = open_checkpoint(recipe.soup)
    manifest = Manifest.read(soup.directory)
    coefficients, endpoints = _endpoints(soup, manifest)
    ingredients = plan_soup(check_compatible([soup]), [soup], recipe, report, model=soup)
    if recipe.dry_run:
        return show_plan(ingredients, recipe, world, report)
    task = open_task(soup, recipe, world)
    check_seen([soup], task.splits, recipe, report, selects=False)
    changed, notes = repaired(
        task,
        endpoints,
        coefficients,
        kind=recipe.kind,
        batches=training_batches(task, recipe, num_batches=recipe.num_batches),
        force=recipe.force,
        report=report,
    )
    selected = {} if recipe.force else chosen_on(task.splits)
    return write_soup(
        ingredients,
        copying(ingredients),
        recipe,
        world,
        report,
        command=COMMAND,
        record=Record(notes={"repair": notes, **selected}),
        replaced=rounded(changed, ingredients.plan.slots),
        measure=lambda written: _measure(task, written),
    )


def _endpoints(soup: Checkpoint, manifest: Manifest) -> tuple[list[float], list[Source]]:
    """The coefficients of a soup and its ingredients, permuted as they were when it was made."""
    if manifest.mixture is None:
        raise CheckpointError(
            f"{soup.reference}: was made by `soupkit {manifest.command}`, which records no coefficients",
            hint="repair works on linear soups: merge uniform, weighted, interpolate, greedy, …",
        )
    mixture = Mixture.from_json(manifest.mixture)
    views = open_as_recorded(soup.directory, manifest)
    rows = mixture.used()
    if len(rows) < 2:
        raise RecipeError(f"{soup.reference}: has one ingredient, so there is nothing to repair")
    coefficients = mixture.matrix[rows].mean(axis=1)
    if (coefficients < 0).any() or abs(coefficients.sum() - 1) > 1e-6:
        raise RecipeError(f"{soup.reference}: its coefficients are not a mean of its ingredients")
    return coefficients.tolist(), [views[row] for row in rows]


def _measure(task: ImageTask, written: Checkpoint) -> Json:
    task.load(written)
    return measured(task)
