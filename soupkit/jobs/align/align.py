"""`align`: write checkpoints whose units are in the order of another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.quantized import refuse_quantized
from soupkit.checkpoint.reference import open_checkpoint, open_references
from soupkit.errors import RecipeError
from soupkit.events import Cell, Report, Table, Told, Wrote, silent
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.merge.mixture import uniform
from soupkit.recipe.align import Align
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.tables import tell_plan
from soupkit.stages.alignment.permute import Aligned, open_network
from soupkit.stages.alignment.turn import aligned_ingredients, check_alignable
from soupkit.stages.inputs.recorded import write_turns
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.outputs.soup import Record, plan_soup, write_soup
from soupkit.world import World

COMMAND = "align"


def align(recipe: Align, world: World, report: Report) -> Json:
    """Match, check, and write OUT/NAME for every checkpoint; returns the manifest of all of them.

    Raises AlignError, TaskError, CompatibilityError or OutputError before anything is written.
    """
    checkpoints, to = _open(recipe)
    check_alignable(checkpoints, recipe, report)
    size = sum(checkpoint.num_bytes for checkpoint in checkpoints)
    inputs = [file for checkpoint in checkpoints for file in checkpoint.files]
    output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, num_bytes=size, inputs=inputs)
    if recipe.dry_run:
        return _show_plan(checkpoints, to, recipe, report)
    aligned = aligned_ingredients(checkpoints, to=to, recipe=recipe, world=world, report=report)
    names = member_names(checkpoints)
    with output as directory:
        write = _writer(aligned, recipe, world)
        manifests = [write(number, directory / name) for number, name in enumerate(names)]
        manifest = Manifest(
            command=COMMAND,
            recipe=recipe_to_json(recipe),
            inputs=[
                entry
                for view, each in zip(aligned.views, manifests, strict=True)
                for entry in describe_inputs([view], recipe.out, [each["inputs"][0]["content"]])
            ],
            outputs={name: each["outputs"] for name, each in zip(names, manifests, strict=True)},
            notes={"members": names, "alignment": aligned.notes},
        )
        manifest.write(directory)
    report(_table(aligned, checkpoints))
    if not recipe.rotate and not any(match.num_changed for match in aligned.matches):
        report(
            Told(
                f"identity, 0 of {len(aligned.matches[0].permutation)} groups changed: they were "
                f"aligned already"
            )
        )
    report(Wrote(recipe.out, size))
    return manifest.to_json()


def _open(recipe: Align) -> tuple[list[Checkpoint], int | None]:
    """The checkpoints, and which of them the others are matched to; one that is not among them is put
    first."""
    checkpoints = open_references(recipe.refs)
    place = None
    if recipe.to is not None:
        target = open_checkpoint(recipe.to)
        paths = [checkpoint.path.resolve() for checkpoint in checkpoints]
        if target.path.resolve() not in paths:
            checkpoints, paths = [target, *checkpoints], [target.path.resolve(), *paths]
        place = paths.index(target.path.resolve())
    refuse_quantized(checkpoints)
    if len(checkpoints) < 2:
        raise RecipeError(
            "refs name one checkpoint, expected at least two", hint="or give what to match: --to REF"
        )
    return checkpoints, place


def member_names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A folder name for each checkpoint: its own, numbered where two are alike."""
    own = [
        Path(checkpoint.reference.rstrip("/")).name.removesuffix(".safetensors") or "model"
        for checkpoint in checkpoints
    ]
    return [f"{number:02d}-{name}" if own.count(name) > 1 else name for number, name in enumerate(own)]


def _writer(aligned: Aligned, recipe: Align, world: World) -> Callable[[int, Path], Json]:
    alone = replace(recipe, overwrite=False)

    def write(number: int, out: Path) -> Json:
        view = aligned.views[number]
        ingredients = plan_soup(check_compatible([view]), [view], replace(alone, out=out), silent, model=view)
        notes = {**aligned.notes, "matches": [aligned.notes["matches"][number]]}
        record = Record(notes={"alignment": notes})
        return write_soup(
            ingredients,
            uniform([view.reference]),
            alone,
            world,
            silent,
            command=COMMAND,
            record=record,
            illustrate=lambda directory: write_turns([view], directory),
            out=out,
        )

    return write


def _table(aligned: Aligned, checkpoints: Sequence[Checkpoint]) -> Table:
    rows = []
    for number, (checkpoint, match) in enumerate(zip(checkpoints, aligned.matches, strict=True)):
        changed = "reference" if number == aligned.to else f"{match.num_changed} of {len(match.permutation)}"
        values = (
            (None, None) if number == aligned.to else (round(match.cosine_before, 4), round(match.cosine, 4))
        )
        rows.append((checkpoint.reference, changed, *values))
    return Table("align", ("checkpoint", "groups changed", "cosine before", "cosine"), tuple(rows))


def _show_plan(checkpoints: Sequence[Checkpoint], to: int | None, recipe: Align, report: Report) -> Json:
    """What --dry-run prints: the groups are derived and checked by now, nothing is matched or written."""
    network = open_network(checkpoints[0], recipe, report)
    target = checkpoints[to].reference if to is not None else "the first of two, the medoid of more"
    values: dict[str, Cell] = {
        "checkpoints": len(checkpoints),
        "to": target,
        "groups": len(network.spec.groups),
        "units": int(np.sum([group.size for group in network.spec.groups.values()])),
        "pinned axes": len(network.spec.pinned),
        "bytes to write": sum(checkpoint.num_bytes for checkpoint in checkpoints),
    }
    return tell_plan(values, report, nothing="was written")
