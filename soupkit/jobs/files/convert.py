"""`convert`: other people's checkpoint files → checkpoint directories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.companions import copy_files, follow_dtype
from soupkit.checkpoint.formats.convert import (
    Pickled,
    write_pickled,
)
from soupkit.checkpoint.hashing import content_hash, files_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.seen import seen_by
from soupkit.checkpoint.tensors import Plan
from soupkit.errors import ReferenceError, SoupkitError
from soupkit.events import Advanced, Finished, Report, Started, Table, Told, Warned, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.hub import Convert
from soupkit.recipe.parse import recipe_to_json
from soupkit.stages.inputs.ordered import say_order
from soupkit.stages.inputs.other_files import OtherFile, open_all, sources_of
from soupkit.stages.outputs.configured import Finish, finishers
from soupkit.stages.outputs.described import describe_outputs
from soupkit.world import World

COMMAND = "convert"


def convert(recipe: Convert, world: World, report: Report) -> Json:
    """Read every file, check all of them, then write them one by one.

    Memory: one tensor at a time for files of torch ≥ 1.6, the whole file for older ones; the model with
    --model. Raises ReferenceError, CheckpointError, TaskError, OutputError; then nothing is left behind.
    """
    sources = [source for ref in recipe.refs for source in sources_of(ref)]
    members = _member_names(sources)
    say_order(recipe.refs, report)
    opened = open_all(sources, recipe, report)
    warnings = _mixed(sources, opened, recipe)
    for warning in warnings:
        report(Warned(warning))
    read = [(source.reference, pickled.slots) for source, (pickled, _) in zip(sources, opened, strict=True)]
    finishes = finishers(read, recipe)
    if recipe.dry_run:
        return _show_plan(sources, opened, report)
    total = sum(plan.num_bytes for _, plan in opened)
    with OutputDirectory(
        recipe.out,
        overwrite=recipe.overwrite,
        num_bytes=total,
        inputs=[file for each, _ in opened for file in each.files],
    ) as directory:
        report(Started("converting", total, "bytes"))
        manifests = []
        todo = zip(sources, members, opened, finishes, strict=True)
        for source, name, (pickled, plan), finish in todo:
            target = directory / name
            target.mkdir(exist_ok=True)
            manifests.append(_write(target, source, pickled, plan, finish, recipe, world, report))
        report(Finished("converting"))
        manifest = manifests[0] if len(sources) == 1 else _of_members(members, manifests, recipe, warnings)
        manifest.write(directory)
    report(Wrote(recipe.out, total))
    return manifest.to_json()


def _member_names(sources: Sequence[OtherFile]) -> list[str]:
    """Where each file goes inside OUT: nowhere else for one, by its name for several."""
    if len(sources) == 1:
        return ["."]
    for number in (0, 1):
        names = [source.names()[number] for source in sources]
        if len(set(names)) == len(names):
            return names
    twice = next(name for name in names if names.count(name) > 1)
    raise ReferenceError(
        f"several files would become {twice}", hint="convert them one by one, or rename them"
    )


def _mixed(
    sources: Sequence[OtherFile], opened: Sequence[tuple[Pickled, Plan]], recipe: Convert
) -> list[str]:
    """What to say when some files gave their averaged weights and others have none."""
    kinds = [pickled.kind for pickled, _ in opened]
    if "averaged" not in kinds or set(kinds) == {"averaged"}:
        return []
    number, other = kinds.count("averaged"), next(k for k, kind in enumerate(kinds) if kind != "averaged")
    said = (
        f"{number} of {len(kinds)} files gave averaged (EMA) weights, the others raw ones, "
        f"{sources[other].reference}"
    )
    options = (
        ""
        if recipe.key
        else " (--prefer raw takes the raw weights of all; --prefer ema refuses those without)"
    )
    return [f"{said} for example: a soup of them mixes the two{options}"]


def _write(
    directory: Path,
    source: OtherFile,
    pickled: Pickled,
    plan: Plan,
    finish: Finish,
    recipe: Convert,
    world: World,
    report: Report,
) -> Manifest:
    """One checkpoint directory with its manifest."""
    _tell(source.reference, pickled, recipe, report)
    copy_files(pickled.companions, pickled.directory or directory, directory)
    write_pickled(
        directory,
        pickled,
        plan,
        to=recipe.to,
        advance=lambda num_bytes: report(Advanced("converting", num_bytes)),
    )
    follow_dtype(directory, plan.slots)
    try:
        finish(directory)
    except SoupkitError as error:
        raise type(error)(f"{source.reference}: {error.message}", hint=error.hint) from error
    content = content_hash(Checkpoint(directory), threads=world.num_threads)
    manifest = Manifest(
        command=COMMAND,
        recipe=recipe_to_json(recipe),
        inputs=[_describe(source, pickled, recipe, world, content)],
        outputs=describe_outputs(directory, content),
        notes={
            "where": pickled.where,
            "kind": pickled.kind,
            "others": list(pickled.others),
            "told": list(pickled.notes),
            "facts": dict(pickled.facts),
        },
    )
    manifest.write(directory)
    return manifest


def _describe(source: OtherFile, pickled: Pickled, recipe: Convert, world: World, written: str) -> Json:
    """The manifest's record of an input; `written` is the content hash of what was made of it."""
    place: Json = {"path": os.path.relpath(source.path.resolve(), recipe.out.resolve())}
    if source.on_hub:
        place = {"commit": source.on_hub.revision}
    if isinstance(pickled.tensors, Checkpoint):  # of the same weights, but for names that are written twice
        content = (
            written if recipe.to == "safetensors" else pickled.tensors.identity(threads=world.num_threads)
        )
        place |= pickled.tensors.read
    else:
        content = files_hash(pickled.files)
    return {"reference": source.reference, **place, "content": content, **_seen(source)}


def _seen(source: OtherFile) -> Json:
    directory = source.path if source.path.is_dir() else source.path.parent
    found = [] if source.on_hub else seen_by(directory)
    return {"seen": found} if found else {}


def _tell(path: str, pickled: Pickled, recipe: Convert, report: Report) -> None:
    if pickled.others and recipe.key is None:
        report(
            Told(
                f"{path}: took {pickled.where}; the file also holds {', '.join(pickled.others)} (--key, "
                f"--prefer)"
            )
        )
    for note in pickled.notes:
        report(Told(f"{path}: {note}"))
    if pickled.ties:
        report(
            Told(f"{path}: {len(pickled.ties)} tied tensors are written once, with a note in the metadata")
        )
    architecture = pickled.facts.get("arch")
    if recipe.model is None and isinstance(architecture, str) and not pickled.companions:
        report(
            Told(f"{path}: says it is {architecture}; --model timm:{architecture} writes its configuration")
        )


def _of_members(
    members: Sequence[str], manifests: Sequence[Manifest], recipe: Convert, warnings: Sequence[str]
) -> Manifest:
    return Manifest(
        command=COMMAND,
        recipe=recipe_to_json(recipe),
        inputs=[entry for manifest in manifests for entry in manifest.inputs],
        outputs={name: manifest.outputs for name, manifest in zip(members, manifests, strict=True)},
        notes={"members": list(members), **({"warnings": list(warnings)} if warnings else {})},
    )


def _show_plan(sources: Sequence[OtherFile], opened: Sequence[tuple[Pickled, Plan]], report: Report) -> Json:
    plans: list[Json] = [
        {
            "reference": source.reference,
            "where": pickled.where,
            "others": list(pickled.others),
            "tensors": len(pickled.tensors),
            "tied": dict(pickled.ties),
            "parameters": sum(slot.num_elements for slot in plan.slots.values()),
            "bytes_to_write": plan.num_bytes,
            "files": [file.name for file in plan.files],
        }
        for source, (pickled, plan) in zip(sources, opened, strict=True)
    ]
    rows = tuple(
        (plan["reference"], plan["where"], plan["tensors"], plan["bytes_to_write"]) for plan in plans
    )
    report(Table("plan: nothing was written", ("file", "key", "tensors", "bytes"), rows))
    return {"plan": plans}
