"""What the commands do, as functions. The package exports them: `soupkit.merge`, `soupkit.run`,
`soupkit.combine`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soupkit.asked import Recipe
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.commands import COMMANDS, Command
from soupkit.errors import RecipeError
from soupkit.events import Report, silent
from soupkit.jsons import Json
from soupkit.merge.memory import combined
from soupkit.merge.mixture import Mixture
from soupkit.merge.writer import StreamOptions
from soupkit.recipe.parse import parse_recipe, suggestion
from soupkit.world import world_of

Source = str | Path | Mapping[str, Array]
"""A reference, or tensors by name: a dict of arrays, a Checkpoint, any lazy mapping."""


def merge(
    refs: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "uniform",
    report: Report = silent,
    **options: Any,
) -> Checkpoint:
    """Merge checkpoints into the directory `out` as `soupkit merge METHOD` does, and open what was written.

    refs: as on the command line, the Hub included. options: those of the command, with underscores
    (coefficients, base, dtype, overwrite, stream, …). report: is told what happens. Raises RecipeError for
    unknown methods and options, and every SoupkitError that the command ends with.
    """
    methods = {
        name.removeprefix("merge "): command
        for name, command in COMMANDS.items()
        if name.startswith("merge ")
    }
    if method not in methods:
        raise RecipeError(f"there is no method {method!r}", hint=suggestion(method, methods))
    values = {"refs": [str(ref) for ref in refs], "out": str(out), **options}
    recipe = parse_recipe(methods[method].recipe_type(), values, where=f"merge {method}")
    methods[method].load_job()(recipe, world_of(recipe), report)
    return open_checkpoint(str(out))


def run(recipe: Recipe, *, report: Report = silent) -> Json:
    """Run the command that a recipe is of, and return what its `--json` prints.

    `soupkit.run(Evaluate(refs=("soups/greedy",), data="digits"))`: the dataclasses in `soupkit.recipe` are
    the typed form of every command's options. Raises RecipeError for anything else, and what the command
    raises.
    """
    return _command_of(recipe).load_job()(recipe, world_of(recipe), report)


def _command_of(recipe: object) -> Command:
    place = f"{type(recipe).__module__}:{type(recipe).__qualname__}"
    for command in COMMANDS.values():
        if command.recipe == place:
            return command
    raise RecipeError(
        f"{type(recipe).__name__} is the recipe of no command", hint="they are in soupkit.recipe"
    )


def combine(ingredients: Sequence[Source], mixture: Mixture, *, threads: int = 0) -> dict[str, Array]:
    """Σ_k c_k w_k / divisor in memory: the same bits that a merge writes.

    Sums in float64, rounded once into each tensor's own dtype; counters that differ take the largest. Raises
    CompatibilityError, CheckpointError. Memory: the result and small buffers.
    """
    opened = [open_source(source) for source in ingredients]
    agreement = check_compatible(opened)
    options = StreamOptions(threads=threads, hash=False)
    tensors = combined(opened, mixture, slots=agreement.slots, options=options)
    return tensors | {dropped: tensors[kept] for dropped, kept in agreement.ties.items()}


def open_source(source: Source) -> Mapping[str, Array]:
    """A mapping as it is, a reference opened. Raises ReferenceError, CheckpointError."""
    return open_checkpoint(str(source)) if isinstance(source, str | Path) else source
