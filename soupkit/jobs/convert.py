"""`convert`: other people's checkpoint files → checkpoint directories."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.convert import Pickled, Selection, read_pickled, write_pickled
from soupkit.checkpoint.hashing import content_hash, files_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import glob_paths
from soupkit.checkpoint.tensors import Plan, parse_bytes, plan_files
from soupkit.errors import ReferenceError, SoupkitError
from soupkit.events import Advanced, Finished, Report, Started, Table, Told, Wrote
from soupkit.jobs.soup import describe_outputs
from soupkit.manifest import Manifest
from soupkit.recipe.hub import Convert
from soupkit.recipe.parse import recipe_to_json
from soupkit.world import World

COMMAND = "convert"
Finish = Callable[[Path], None]


def convert(recipe: Convert, world: World, report: Report) -> dict[str, Any]:
    """Read every file, check all of them, then write them one by one.

    Memory: one tensor at a time for files of torch ≥ 1.6, the whole file for older ones; the model with --model.
    Raises ReferenceError, CheckpointError, TaskError, OutputError; then nothing is left behind.
    """
    paths = [path for ref in recipe.refs for path in _expand(ref)]
    members = _member_names(paths)
    opened = [_open(path, recipe) for path in paths]
    finish = _finisher(recipe)
    if recipe.dry_run:
        return _show_plan(paths, opened, report)
    total = sum(plan.num_bytes for _, plan in opened)
    with OutputDirectory(
        recipe.out,
        overwrite=recipe.overwrite,
        num_bytes=total,
        inputs=[file for each, _ in opened for file in each.files],
    ) as directory:
        report(Started("converting", total, "bytes"))
        manifests = []
        for path, name, (pickled, plan) in zip(paths, members, opened, strict=True):
            target = directory / name
            target.mkdir(exist_ok=True)
            manifests.append(_write(target, path, pickled, plan, finish, recipe, world, report))
        report(Finished("converting"))
        manifest = manifests[0] if len(paths) == 1 else _of_members(members, manifests, recipe)
        manifest.write(directory)
    report(Wrote(recipe.out, total))
    return manifest.to_json()


def _expand(ref: str) -> list[Path]:
    path = Path(ref).expanduser()
    if path.exists() or not glob.has_magic(ref):
        return [path]
    matches = glob_paths(ref)
    if not matches:
        raise ReferenceError(f"{ref}: matches nothing", hint="check the pattern")
    return matches


def _member_names(paths: Sequence[Path]) -> list[str]:
    """Where each file goes inside OUT: nowhere else for one, by its name for several."""
    if len(paths) == 1:
        return ["."]
    names = [_stem(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}-{_stem(path)}" for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ReferenceError(f"several files would become {twice}", hint="convert them one by one, or rename them")
    return names


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".index.json").removesuffix(".tar")
    return name if path.is_dir() else Path(name).stem


def _open(path: Path, recipe: Convert) -> tuple[Pickled, Plan]:
    selection = Selection(recipe.key, recipe.prefer, recipe.strip, recipe.drop, recipe.ignore)
    pickled = read_pickled(path, selection)
    with_clip = recipe.model is not None and recipe.model.startswith("open_clip:")
    plan = plan_files(
        pickled.slots,
        file_name="open_clip_model.safetensors" if with_clip else "model.safetensors",
        max_shard_bytes=parse_bytes(recipe.max_shard_size),
        metadata=pickled.ties,
    )
    return pickled, plan


def _finisher(recipe: Convert) -> Finish:
    """What follows the weights: with --model, a strict load into that model, and its configuration."""
    if recipe.model is None:
        return lambda _directory: None
    import soupkit.task.torchvision_ops  # noqa: F401  (before timm and open_clip)
    from soupkit.task.models import build, load_weights, write_config
    from soupkit.task.spec import parse_model

    spec = parse_model(recipe.model)
    model = build(spec)

    def finish(directory: Path) -> None:
        load_weights(model, Checkpoint(directory))
        write_config(spec, model, directory)

    return finish


def _write(
    directory: Path,
    path: Path,
    pickled: Pickled,
    plan: Plan,
    finish: Finish,
    recipe: Convert,
    world: World,
    report: Report,
) -> Manifest:
    """One checkpoint directory with its manifest."""
    _tell(path, pickled, recipe, report)
    for companion in pickled.companions:
        shutil.copyfile(companion, directory / companion.name)
    write_pickled(directory, pickled, plan, advance=lambda num_bytes: report(Advanced("converting", num_bytes)))
    try:
        finish(directory)
    except SoupkitError as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint) from error
    manifest = Manifest(
        command=COMMAND,
        recipe=recipe_to_json(recipe),
        inputs=[_describe(path, pickled, recipe.out)],
        outputs=describe_outputs(directory, content_hash(Checkpoint(directory), threads=world.num_threads)),
        notes={"where": pickled.where, "others": list(pickled.others), "facts": dict(pickled.facts)},
    )
    manifest.write(directory)
    return manifest


def _describe(path: Path, pickled: Pickled, out: Path) -> dict[str, Any]:
    return {
        "reference": str(path),
        "path": os.path.relpath(path.resolve(), out.resolve()),
        "content": files_hash(pickled.files),
    }


def _tell(path: Path, pickled: Pickled, recipe: Convert, report: Report) -> None:
    if pickled.others and recipe.key is None:
        report(Told(f"{path}: took {pickled.where}; the file also holds {', '.join(pickled.others)} (--key, --prefer)"))
    if pickled.ties:
        report(Told(f"{path}: {len(pickled.ties)} tied tensors are written once, with a note in the metadata"))
    architecture = pickled.facts.get("arch")
    if recipe.model is None and isinstance(architecture, str) and not pickled.companions:
        report(Told(f"{path}: says it is {architecture}; --model timm:{architecture} writes its configuration"))


def _of_members(members: Sequence[str], manifests: Sequence[Manifest], recipe: Convert) -> Manifest:
    return Manifest(
        command=COMMAND,
        recipe=recipe_to_json(recipe),
        inputs=[entry for manifest in manifests for entry in manifest.inputs],
        outputs={name: manifest.outputs for name, manifest in zip(members, manifests, strict=True)},
        notes={"members": list(members)},
    )


def _show_plan(paths: Sequence[Path], opened: Sequence[tuple[Pickled, Plan]], report: Report) -> dict[str, Any]:
    plans: list[dict[str, Any]] = [
        {
            "reference": str(path),
            "where": pickled.where,
            "others": list(pickled.others),
            "tensors": len(pickled.tensors),
            "tied": dict(pickled.ties),
            "parameters": sum(slot.num_elements for slot in plan.slots.values()),
            "bytes_to_write": plan.num_bytes,
            "files": [file.name for file in plan.files],
        }
        for path, (pickled, plan) in zip(paths, opened, strict=True)
    ]
    rows = tuple((plan["reference"], plan["where"], plan["tensors"], plan["bytes_to_write"]) for plan in plans)
    report(Table("plan: nothing was written", ("file", "key", "tensors", "bytes"), rows))
    return {"plan": plans}
