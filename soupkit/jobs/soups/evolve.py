"""`merge evolve`."""

from __future__ import annotations

import numpy as np

from soupkit.checkpoint.reference import open_references
from soupkit.events import Report, Table
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture
from soupkit.recipe.soup import MergeEvolve
from soupkit.report.tables import score_rows, score_table, uniform_label
from soupkit.soup.blocks import Layout, lay_out_weights
from soupkit.soup.evolve import Evolved, evolve
from soupkit.stages.inputs.seen import fitted_on
from soupkit.stages.outputs.soup import Ingredients, Record, prepare, show_plan, write_soup
from soupkit.stages.scoring.direction import decide
from soupkit.stages.scoring.judges import (
    RememberingScorer,
    open_judge,
    refuse_refresh,
    score_entry,
    write_judged,
)
from soupkit.stages.scoring.ranked import without_the_best
from soupkit.world import World


def merge_evolve(recipe: MergeEvolve, world: World, report: Report) -> Json:
    """Search coefficients by scores alone, write the best soup, and score what was written."""
    better = decide(recipe, report)
    ingredients = prepare(without_the_best(open_references(recipe.refs), recipe, report), recipe, report)
    layout = lay_out_weights(ingredients.plan.slots, recipe.blocks)
    refuse_refresh(recipe)
    judge = open_judge(ingredients, recipe, world, report)
    if recipe.dry_run:
        return show_plan(ingredients, recipe, world, report)
    remembering = RememberingScorer(judge, recipe, world, report)
    evolved = evolve(
        lambda coefficients_KB: remembering(_mixture(ingredients, layout, coefficients_KB, recipe), None),
        len(ingredients.checkpoints),
        layout.num_blocks,
        constraint=recipe.constraint,
        direction=better,
        evaluations=recipe.evaluations,
        population=recipe.population or None,
        sigma=recipe.sigma,
        seed=recipe.seed,
        report=report,
    )
    remembering.tell(report)
    best = _mixture(ingredients, layout, evolved.coefficients_KB, recipe)

    def write(alone: World) -> Json:
        soup = judge.soup
        return write_soup(
            ingredients,
            best,
            recipe,
            alone,
            report,
            command="merge evolve",
            record=Record(_trace(evolved), {**_notes(evolved, layout), **fitted_on(soup)}),
            replaced=soup.load(best) if soup and recipe.bn == "refresh" else None,
            measure=judge.measure,
        )

    manifest = write_judged(judge, world, write)
    has_batch_norm = any(name.endswith("running_mean") for name in ingredients.plan.slots)
    report(_table(manifest, has_batch_norm=has_batch_norm))
    return manifest


def _mixture(
    ingredients: Ingredients, layout: Layout, coefficients_KB: np.ndarray, recipe: MergeEvolve
) -> Mixture:
    names, slots = ingredients.names, ingredients.plan.slots
    return layout.mixture(names, coefficients_KB, slots, keep_first=recipe.bn == "keep")


def _trace(evolved: Evolved) -> list[Json]:
    return [{"generation": number, "value": value} for number, value in enumerate(evolved.history)]


def _notes(evolved: Evolved, layout: Layout) -> Json:
    return {
        "evaluations": evolved.num_evaluations,
        "uniform": score_entry(evolved.start),
        "held_out_of_soup": score_entry(evolved.score),
        "blocks": list(layout.labels),
    }


def _table(manifest: Json, *, has_batch_norm: bool) -> Table:
    """The uniform soup beside the best one, on what selected and on what did not."""
    notes, metrics = manifest["notes"], manifest["metrics"]
    uniform = uniform_label(manifest["recipe"]["bn"], has_batch_norm=has_batch_norm)
    start = {"held_out": {notes["uniform"]["metric"]: notes["uniform"]}}
    best = f"best of {notes['evaluations']}"
    return score_table("merge evolve", score_rows(uniform, start, notes), score_rows(best, metrics, notes))
