"""`run`: a recipe file, step by step."""

from __future__ import annotations

from soupkit.events import Report, Told
from soupkit.jsons import Json
from soupkit.recipe.run import Run
from soupkit.recipe.steps import load_steps
from soupkit.stages.steps import run_steps, show_plan
from soupkit.world import World


def run(recipe: Run, world: World, report: Report) -> Json:
    """Check every step of a recipe file, run them, check its expectations. Every step's own options choose
    its device.

    Returns {"steps": {name: result}}; with dry_run {"steps": {name: {command, action, why}}}.
    Raises RecipeError before the first step, ExpectationError after the last.
    """
    loaded = load_steps(recipe.file, recipe.set)
    if loaded.description:
        report(Told(loaded.description.strip()))
    if recipe.dry_run:
        return show_plan(loaded.steps, report, force=recipe.force)
    return run_steps(loaded.steps, report, force=recipe.force, world=world)
