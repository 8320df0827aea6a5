"""`verify` and `reproduce`: does an output still hold what its manifest says, and can it be made again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soupkit.asked import Aligns, Tries
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.hashing import content_hash, file_sha256, file_xxh3
from soupkit.checkpoint.views.adapted import WEIGHTS, is_adapter
from soupkit.commands import COMMANDS
from soupkit.errors import CheckpointError, brief
from soupkit.events import Report, Table, Told, Warned
from soupkit.jsons import Json
from soupkit.manifest import MANIFEST_NAME, Manifest, installed_versions
from soupkit.merge.mixture import Mixture
from soupkit.recipe.inspect import Reproduce, Verify
from soupkit.recipe.method_options import MethodRecipe
from soupkit.recipe.parse import parse_recipe
from soupkit.stages.inputs.recorded import content_of_input, open_as_recorded, place_of, write_turns
from soupkit.stages.methods.merge import write_merge
from soupkit.stages.methods.opened import with_inputs
from soupkit.stages.outputs.soup import Record, prepare, show_plan, write_soup
from soupkit.world import World


def verify(recipe: Verify, world: World, report: Report) -> Json:
    """Hash weights and files again. Raises CheckpointError naming what changed."""
    manifest = Manifest.read(recipe.directory)
    members = manifest.notes.get("members", [])
    directories = [recipe.directory / name for name in members] or [recipe.directory]
    checks = [check for directory in directories for check in _check_output(directory, world)]
    if recipe.inputs:
        checks += _check_inputs(recipe.directory, manifest, world)
    unknown = [name for directory in directories for name in _unrecorded(directory)]
    if unknown and not recipe.strict:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        report(
            Warned(
                f"{len(unknown)} files are not in {MANIFEST_NAME}, for example {shown} (--strict: an error)"
            )
        )
    checks += [(name, False, f"is not in {MANIFEST_NAME}") for name in unknown if recipe.strict]
    report(
        Table(
            f"verify {recipe.directory}", ("what", "as recorded"), tuple((what, ok) for what, ok, _ in checks)
        )
    )
    changed = [f"{what}: {why}" for what, ok, why in checks if not ok]
    if changed:
        raise CheckpointError(
            f"{recipe.directory}: is not what {MANIFEST_NAME} records: " + "; ".join(changed),
            hint="restore it, or build it again: soupkit reproduce DIR --out NEW",
        )
    recorded = [{"what": what, "ok": ok} for what, ok, _ in checks]
    return {"directory": str(recipe.directory), "checks": recorded, "unrecorded": unknown}


def _unrecorded(directory: Path) -> list[str]:
    """What lies in an output, at any depth, and is not recorded: code that a configuration may name, for
    example.

    Outputs inside it (an average, snapshots) have records of their own.
    """
    known = {*Manifest.read(directory).outputs.get("files", {}), MANIFEST_NAME, "README.md"}
    found: list[str] = []
    for folder, folders, files in os.walk(directory):
        own = [name for name in folders if not (Path(folder) / name / MANIFEST_NAME).is_file()]
        links = [name for name in own if (Path(folder) / name).is_symlink()]
        folders[:] = sorted(set(own) - set(links))
        paths = (Path(folder) / name for name in (*files, *links))
        found += [str(path) for path in paths if path.relative_to(directory).as_posix() not in known]
    return sorted(found)


def _check_output(directory: Path, world: World) -> list[tuple[str, bool, str]]:
    manifest = Manifest.read(directory)
    weights = directory / WEIGHTS if is_adapter(directory) else directory
    content = content_hash(Checkpoint(weights), threads=world.num_threads)
    recorded = manifest.outputs.get("content")
    checks = [(f"{directory}: weights", content == recorded, f"content {content}, recorded {recorded}")]
    for name, entry in manifest.outputs.get("files", {}).items():
        path = directory / name
        if not path.is_file():
            checks.append((str(path), False, "is missing"))
            continue
        found = {"bytes": path.stat().st_size}
        for key, digest in (("xxh3-128", file_xxh3), ("sha256", file_sha256)):
            if key in entry:
                found[key] = digest(path)
        if name != "README.md":  # people edit model cards, and should
            checks.append((str(path), found == entry, f"has {found}, recorded {entry}"))
    return checks


def _check_inputs(directory: Path, manifest: Manifest, world: World) -> list[tuple[str, bool, str]]:
    checks = []
    for entry in manifest.inputs:
        content = content_of_input(directory, entry, world)
        recorded = entry.get("content")
        checks.append(
            (f"input {entry['reference']}", content == recorded, f"content {content}, recorded {recorded}")
        )
    return checks


def reproduce(recipe: Reproduce, world: World, report: Report) -> Json:
    """Write the soup again from the recorded coefficients; the weights must come out as the same bits.

    Raises CheckpointError when an ingredient has changed or the result differs.
    """
    manifest = Manifest.read(recipe.directory)
    if manifest.command in COMMANDS and issubclass(COMMANDS[manifest.command].recipe_type(), MethodRecipe):
        return _merge_again(recipe, manifest, _recorded_recipe(manifest, recipe), world, report)
    if manifest.mixture is None:
        raise CheckpointError(
            f"{recipe.directory}: was made by `soupkit {manifest.command}`, which records no coefficients",
            hint="reproduce works on soups; run the recorded command again for anything else",
        )
    made_with = _recorded_recipe(manifest, recipe)
    ingredients = prepare(open_as_recorded(recipe.directory, manifest), made_with, report)
    if recipe.dry_run:
        return show_plan(ingredients, made_with, world, report)
    for what, ok, why in _check_inputs(recipe.directory, manifest, world):
        if not ok:
            raise CheckpointError(
                f"{what}: has changed since: {why}", hint="bring the recorded checkpoint back"
            )
    mixture = Mixture.from_json(manifest.mixture)
    replaced: Mapping[str, Array] | None = None
    if isinstance(made_with, Aligns) and made_with.repair != "off":
        from soupkit.stages.alignment.merges import replaced_tensors

        replaced, _ = replaced_tensors(ingredients, mixture, made_with, world, report)
    elif isinstance(made_with, Tries) and made_with.bn in ("refresh", "batch"):
        from soupkit.stages.scoring.scoring import refreshed_statistics

        replaced = refreshed_statistics(ingredients, mixture, made_with, world, report)
    record = Record(manifest.trace, {**manifest.notes, "reproduces": manifest.outputs.get("content")})
    again = write_soup(
        ingredients,
        mixture,
        made_with,
        world,
        report,
        command=manifest.command,
        record=record,
        replaced=replaced,
        measure=lambda written: _same_bits(written, manifest, world),
        illustrate=lambda directory: write_turns(ingredients.checkpoints, directory),
    )
    report(Told("the same bits"))
    return again


def _merge_again(
    recipe: Reproduce, manifest: Manifest, made_with: MethodRecipe, world: World, report: Report
) -> Json:
    """A method's output has no coefficients: the recorded recipe runs again, on the recorded inputs."""
    again = write_merge(
        with_inputs(made_with, _references(recipe.directory, manifest)),
        world,
        report,
        record=Record(manifest.trace, {**manifest.notes, "reproduces": manifest.outputs.get("content")}),
        measure=lambda written: _same_bits(written, manifest, world),
    )
    report(Told("the same bits"))
    return again


def _references(directory: Path, manifest: Manifest) -> list[str]:
    """What the recipe's references would be now: a place for each input, or a model and the adapter on it."""
    places = [place_of(directory, entry) for entry in manifest.inputs]
    groups = manifest.notes.get("references", [[place] for place in range(len(places))])
    try:
        return ["+".join(places[int(place)] for place in group) for group in groups]
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{directory}: the recorded references cannot be read: {error!r}") from error


def _same_bits(written: Checkpoint, manifest: Manifest, world: World) -> Json:
    """Checked before the output is published. The recorded metrics hold for the same bits."""
    content = content_hash(written, threads=world.num_threads)
    if content != manifest.outputs.get("content"):
        raise CheckpointError(
            f"the soup came out with content {content}, the manifest records "
            f"{manifest.outputs.get('content')}",
            hint=_why_other_bits(manifest),
        )
    return manifest.metrics


def _why_other_bits(manifest: Manifest) -> str:
    """What is different here from where the soup was made; a model's pass depends on all of it."""
    here = installed_versions()
    differing = [
        f"{name} {value} there, {here.get(name, 'missing')} here"
        for name, value in manifest.versions.items()
        if here.get(name) != value
    ]
    return "; ".join(
        [
            *(differing or ["versions and processor are the same here"]),
            "whatever a model's pass gives (refreshed batch-norm statistics, REPAIR) needs the same "
            "versions, processor family and --threads for the same bits",
        ]
    )


def _recorded_recipe(manifest: Manifest, recipe: Reproduce) -> Any:
    """The recipe of the manifest with this run's output."""
    kind = COMMANDS[manifest.command].recipe_type() if manifest.command in COMMANDS else None
    known = {field.name for field in dataclasses.fields(kind)} if kind else set()
    if kind is None or not {"out", "overwrite", "non_finite"} <= known:
        raise CheckpointError(
            f"{recipe.directory / MANIFEST_NAME}: records the command {brief(manifest.command)}, which "
            f"makes no soup",
            hint="was the manifest edited?",
        )
    values = {key: value for key, value in manifest.recipe.items() if key in known}
    if "mismatch" in known:
        values.setdefault("mismatch", "warn")  # before there was this option nothing was refused
    made_with = parse_recipe(kind, values, where=str(recipe.directory / MANIFEST_NAME))
    return dataclasses.replace(
        made_with, out=recipe.out, overwrite=recipe.overwrite, non_finite=recipe.non_finite
    )
