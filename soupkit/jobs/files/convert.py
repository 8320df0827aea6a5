"""`convert`: other people's checkpoint files → checkpoint directories."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.companions import copy_files, follow_dtype
from soupkit.checkpoint.formats.convert import (
    Pickled,
    pickled_as,
    pickled_files,
    read_checkpoint,
    read_pickled,
    write_pickled,
)
from soupkit.checkpoint.formats.numpy_files import is_npz
from soupkit.checkpoint.formats.opened import is_foreign
from soupkit.checkpoint.formats.selection import Selection
from soupkit.checkpoint.hashing import content_hash, files_hash
from soupkit.checkpoint.hub import hub
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import glob_paths, local_path
from soupkit.checkpoint.seen import seen_by
from soupkit.checkpoint.tensors import Plan, parse_bytes, plan_files
from soupkit.errors import RecipeError, ReferenceError, SoupkitError
from soupkit.events import Advanced, Finished, Report, Started, Table, Told, Warned, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.hub import Convert
from soupkit.recipe.parse import recipe_to_json
from soupkit.stages.inputs.ordered import say_order
from soupkit.stages.outputs.described import describe_outputs
from soupkit.world import World

COMMAND = "convert"
Finish = Callable[[Path], None]


def convert(recipe: Convert, world: World, report: Report) -> Json:
    """Read every file, check all of them, then write them one by one.

    Memory: one tensor at a time for files of torch ≥ 1.6, the whole file for older ones; the model with
    --model. Raises ReferenceError, CheckpointError, TaskError, OutputError; then nothing is left behind.
    """
    sources = [source for ref in recipe.refs for source in _expand(ref)]
    members = _member_names(sources)
    say_order(recipe.refs, report)
    opened = _open_all(sources, recipe, report)
    warnings = _mixed(sources, opened, recipe)
    for warning in warnings:
        report(Warned(warning))
    finish = _finisher(recipe)
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
        for source, name, (pickled, plan) in zip(sources, members, opened, strict=True):
            target = directory / name
            target.mkdir(exist_ok=True)
            manifests.append(_write(target, source, pickled, plan, finish, recipe, world, report))
        report(Finished("converting"))
        manifest = manifests[0] if len(sources) == 1 else _of_members(members, manifests, recipe, warnings)
        manifest.write(directory)
    report(Wrote(recipe.out, total))
    return manifest.to_json()


@dataclass(frozen=True)
class Source:
    """A pickle: what it is called, where it is, and where its companions are when it is one of many files
    there."""

    reference: str
    path: Path
    directory: Path | None = None

    @property
    def on_hub(self) -> hub.HubReference | None:
        """The pinned reference of what came from the Hub."""
        return hub.parse_hub(self.reference) if self.directory else None

    def names(self) -> tuple[str, str]:
        """What to call its folder, and what when that is taken."""
        name = self.path.name.removesuffix(".index.json").removesuffix(".tar")
        stem = name if self.path.is_dir() else Path(name).stem
        if self.on_hub:
            repository = self.on_hub.name.rpartition("/")[2]
            return repository, f"{repository}-{(self.on_hub.revision or '')[:8]}"
        return stem, f"{self.path.resolve().parent.name}-{stem}"


def _expand(ref: str) -> list[Source]:
    """The pickles behind one reference, on this disk or on the Hub."""
    path = local_path(ref)
    if not path.exists() and not glob.has_magic(ref) and hub.looks_like_hub(ref):
        return [Source(*fetched) for fetched in hub.fetch_pickles(ref)]
    if path.exists() or not glob.has_magic(ref):
        return [Source(ref, path)]
    matches = [Source(str(match), match) for match in glob_paths(ref)]
    if not matches:
        raise ReferenceError(f"{ref}: matches nothing", hint="check the pattern")
    return matches


def _member_names(sources: Sequence[Source]) -> list[str]:
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


def _open_all(sources: Sequence[Source], recipe: Convert, report: Report) -> list[tuple[Pickled, Plan]]:
    """Read and check every file, which takes one pass over their bytes."""
    pickles = [source.path for source in sources if not _lies_as_read(source.path, recipe)]
    files = [file for path in pickles for file in pickled_files(path)]
    report(Started("checking", sum(file.stat().st_size for file in files), "bytes"))
    opened = [_open(source, recipe, report) for source in sources]
    report(Finished("checking"))
    return opened


def _lies_as_read(path: Path, recipe: Convert) -> bool:
    """Whether a path is no pickle: what merges read too, safetensors among it where something else is
    written."""
    if recipe.to == "dcp" and (path.suffix == ".safetensors" or any(path.glob("*.safetensors"))):
        return True
    return is_foreign(path)


def _mixed(sources: Sequence[Source], opened: Sequence[tuple[Pickled, Plan]], recipe: Convert) -> list[str]:
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


def _open(source: Source, recipe: Convert, report: Report) -> tuple[Pickled, Plan]:
    selection = Selection(recipe.key, recipe.prefer, recipe.strip, recipe.drop, recipe.ignore, recipe.empty)
    if recipe.model and recipe.model.startswith("timm:") and is_npz(source.path):
        pickled = _named_as_timm(source.path, recipe, selection)
    elif _lies_as_read(source.path, recipe):
        pickled = read_checkpoint(source.path, selection)
    else:
        pickled = read_pickled(
            source.path,
            selection,
            directory=source.directory,
            advance=lambda num_bytes: report(Advanced("checking", num_bytes)),
        )
    with_clip = recipe.model is not None and recipe.model.startswith("open_clip:")
    plan = plan_files(
        pickled.slots,
        file_name="open_clip_model.safetensors" if with_clip else "model.safetensors",
        max_shard_bytes=parse_bytes(recipe.max_shard_size),
        metadata=pickled.ties,
    )
    return pickled, plan


def _named_as_timm(path: Path, recipe: Convert, selection: Selection) -> Pickled:
    """Arrays of JAX under the names that timm's own loader gives them."""
    import soupkit.task.torchvision_ops  # noqa: F401  (before timm)
    from soupkit.task.images.npz import named_as_timm
    from soupkit.task.spec import parse_model

    if selection != Selection():
        raise RecipeError(
            f"{path}: timm names its arrays: no option chooses among them",
            hint="leave --key, --prefer, --strip and --drop out, or leave --model out",
        )
    spec = parse_model(str(recipe.model))
    return pickled_as(named_as_timm(spec, path), path, f"its arrays have the names of timm's {spec.name}")


def _finisher(recipe: Convert) -> Finish:
    """What follows the weights: with --model, a strict load into that model, and its configuration."""
    if recipe.model is None:
        return lambda _directory: None
    import soupkit.task.torchvision_ops  # noqa: F401  (before timm and open_clip)
    from soupkit.task.images.models import build, load_weights, write_config
    from soupkit.task.spec import parse_model

    spec = parse_model(recipe.model)
    model = build(spec)

    def finish(directory: Path) -> None:
        load_weights(model, Checkpoint(directory))
        write_config(spec, model, directory)

    return finish


def _write(
    directory: Path,
    source: Source,
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


def _describe(source: Source, pickled: Pickled, recipe: Convert, world: World, written: str) -> Json:
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


def _seen(source: Source) -> Json:
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


def _show_plan(sources: Sequence[Source], opened: Sequence[tuple[Pickled, Plan]], report: Report) -> Json:
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
