"""`merge mergekit`: a mergekit file, translated and run as soupkit's own command."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.vocabulary import difference, read_vocabulary
from soupkit.checkpoint.reference import local_path, open_checkpoint
from soupkit.checkpoint.source import slots_of
from soupkit.checkpoint.views.adapted import is_adapter
from soupkit.commands import COMMANDS
from soupkit.errors import CompatibilityError, RecipeError, ReferenceError
from soupkit.events import Report, Told
from soupkit.jsons import Json
from soupkit.recipe.merge import MergeMergekit
from soupkit.recipe.mergekit.recipes import Translated, translate
from soupkit.recipe.parse import parse_recipe
from soupkit.stages.inputs.composed import split_adapter
from soupkit.stages.outputs.soup import Record
from soupkit.world import World


def merge_mergekit(recipe: MergeMergekit, world: World, report: Report) -> Json:
    """Translate the file; the manifest records the command that ran, so that it can be reproduced without the
    file."""
    try:
        text = recipe.file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{recipe.file}: cannot be read: {error}") from error
    found = translate(text, where=str(recipe.file), folder=recipe.models)
    check_models(found, str(recipe.file))
    command = COMMANDS[found.command]
    common: Json = {
        "out": recipe.out,
        "overwrite": recipe.overwrite,
        "dry_run": recipe.dry_run,
        "max_shard_size": recipe.max_shard_size,
        "threads": recipe.threads,
        "mismatch": recipe.mismatch,
    }
    kind = command.recipe_type()
    if hasattr(kind, "seed"):
        common["seed"] = recipe.seed
    if found.config is not None:
        common["config_from"] = found.config
    translated = parse_recipe(kind, found.options | common, where=str(recipe.file))
    report(Told(f"{recipe.file}: soupkit {found.command}"))
    for note in found.notes:
        report(Told(f"not as in mergekit: {note}"))
    notes = {"mergekit": {"file": str(recipe.file), "text": text, "not_as_in_mergekit": list(found.notes)}}
    job = cast(Callable[..., Json], command.load_job())
    return job(translated, world, report, record=Record(notes=notes))


def check_models(found: Translated, where: str) -> None:
    """Every reference must be one checkpoint, with an adapter where the file says so, and the vocabulary that
    it asks for. Raises ReferenceError, CompatibilityError."""
    models = [_check_model(reference, found, where) for reference in found.models]
    if found.tokenizer is not None:
        _check_vocabulary(
            open_checkpoint(found.tokenizer), [model for model in models if model is not None], where
        )


def _check_model(reference: str, found: Translated, where: str) -> Checkpoint | None:
    """The model below the adapter, opened; None for an adapter on the base."""
    below, adapter = split_adapter(reference)
    alone = is_adapter(local_path(below))
    if adapter is None and not alone and "+" in below and not local_path(below).exists():
        raise ReferenceError(
            f"{where}: {below}: what follows the plus is no PEFT directory here",
            hint="soupkit pull brings an adapter of the Hub to this disk",
        )
    if alone and reference not in found.adapters:
        raise ReferenceError(f"{where}: {below}: is an adapter, expected a model", hint="write MODEL+ADAPTER")
    return None if alone else open_checkpoint(below)


def _check_vocabulary(source: Checkpoint, models: list[Checkpoint], where: str) -> None:
    """mergekit would move rows of embeddings by token; soupkit merges row by row, so they must already be the
    same."""
    expected = read_vocabulary(source)
    if expected is None:
        raise CompatibilityError(
            f"{where}: tokenizer_source: {source.reference} has no tokenizer that soupkit can read"
        )
    for model in models:
        own = read_vocabulary(model)
        words = None if own is None else difference(expected, own)
        if words is not None:
            raise CompatibilityError(
                f"{where}: tokenizer_source: the vocabulary of {model.reference} is not that of "
                f"{source.reference}: {words}",
                hint="soupkit merges embeddings row by row; give them one vocabulary first: "
                "mergekit-tokensurgeon",
            )
        _check_rows(model, len(expected), where)


def _check_rows(model: Checkpoint, num: int, where: str) -> None:
    """mergekit cuts or fills embeddings to the length of the tokenizer."""
    rows = model.config.get("vocab_size")
    if (
        isinstance(rows, int)
        and rows != num
        and any(slot.shape[:1] == (rows,) for slot in slots_of(model).values())
    ):
        raise CompatibilityError(
            f"{where}: tokenizer_source: {model.reference} has {rows} rows of embeddings for {num} "
            "tokens, and mergekit would cut or fill them",
            hint="leave tokenizer_source out to keep all rows",
        )
