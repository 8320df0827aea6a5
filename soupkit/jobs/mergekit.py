"""`merge mergekit`: a mergekit file, translated and run as soupkit's own command."""

from __future__ import annotations

from typing import Any

from soupkit.commands import COMMANDS
from soupkit.errors import RecipeError
from soupkit.events import Report, Told
from soupkit.recipe.mergekit import translate
from soupkit.recipe.methods import MergeMergekit
from soupkit.recipe.parse import parse_recipe
from soupkit.world import World


def merge_mergekit(recipe: MergeMergekit, world: World, report: Report) -> dict[str, Any]:
    """Translate the file; the manifest records the command that ran, so that it can be reproduced without the file."""
    try:
        text = recipe.file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{recipe.file}: cannot be read: {error}") from error
    found = translate(text, where=str(recipe.file), folder=recipe.models)
    command = COMMANDS[found.command]
    common = {
        "out": recipe.out,
        "overwrite": recipe.overwrite,
        "dry_run": recipe.dry_run,
        "max_shard_size": recipe.max_shard_size,
        "threads": recipe.threads,
    }
    kind = command.recipe_type()
    if hasattr(kind, "seed"):
        common["seed"] = recipe.seed
    translated = parse_recipe(kind, found.options | common, where=str(recipe.file))
    report(Told(f"{recipe.file}: soupkit {found.command}"))
    for note in found.notes:
        report(Told(f"not as in mergekit: {note}"))
    return command.load_job()(translated, world, report)
