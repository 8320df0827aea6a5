"""`report`: gather what is known of an output and write it as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.reference import local_path
from soupkit.errors import OutputError, ReferenceError, SoupkitError
from soupkit.events import Report, Wrote
from soupkit.jsons import Json
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.recipe.report import Report as ReportRecipe
from soupkit.report.html_page import GENERATOR, page
from soupkit.report.sections_curves import KINDS
from soupkit.report.sections_record import member_names
from soupkit.report.sections_subject import Subject, mapping, sequence
from soupkit.stages.inputs.shown import describe
from soupkit.whole import whole_file
from soupkit.world import World

LARGEST_PLOT = 8 << 20
DEEPEST = 2
MOST_PARTS = 200
PATH_SCORES = "curve.json"


def report(recipe: ReportRecipe, _world: World, report: Report) -> Json:
    """Write the page; returns its place and size, and the names of the outputs that it is about.

    Reads headers, manifests and plots, no weights. Raises ReferenceError for what is no output of soupkit,
    OutputError before anything is read when the page cannot be written.
    """
    path = local_path(str(recipe.path))
    out = recipe.out or path.resolve().with_name(f"{path.resolve().name.removesuffix('.json')}.html")
    _check_out(out, overwrite=recipe.overwrite)
    try:
        subject = _of_directory(path) if path.is_dir() else _of_file(path)
        content = page(subject)
    except RecursionError:
        raise ReferenceError(f"{path}: its record is nested too deeply to be one of soupkit") from None
    except OSError as error:
        raise ReferenceError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    num_bytes = _write(out, content)
    report(Wrote(out, num_bytes))
    return {
        "out": str(out),
        "bytes": num_bytes,
        "outputs": [subject.name, *(part.name for part in subject.parts)],
    }


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but a page of soupkit, and that only when told to."""
    if not out.exists():
        return
    if not out.is_file():
        raise OutputError(f"{out}: exists and is not a file", hint="choose another --out")
    if not overwrite:
        raise OutputError(
            f"{out}: exists already", hint="choose another --out, or replace it with --overwrite"
        )
    with out.open("rb") as file:
        is_page = f'<meta name="generator" content="{GENERATOR} '.encode() in file.read(4096)
    if not is_page:
        raise OutputError(
            f"{out}: was not written by soupkit report, so --overwrite does not replace it",
            hint="choose another --out",
        )


def _write(out: Path, content: str) -> int:
    """Write the page, whole or not at all."""
    data = content.encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written: {error.strerror}", hint="choose another --out"
        ) from error
    return len(data)


def _of_directory(directory: Path) -> Subject:
    """An output, a folder of outputs, or a checkpoint; a damaged one says so."""
    subject = _output(directory, name=directory.resolve().name or str(directory))
    if subject.record or subject.parts or subject.facts:
        return subject
    try:
        Checkpoint(directory)
    except ReferenceError:
        hint = f"name a directory with a {MANIFEST_NAME}, with weights, or with such directories in it"
        raise ReferenceError(
            f"{directory}: holds no output of soupkit and no checkpoint", hint=hint
        ) from None
    return subject


def _output(directory: Path, *, name: str, with_parts: bool = True) -> Subject:
    """One directory and, where wanted, the outputs inside of it that are not its own members."""
    manifest = Manifest.read_if_any(directory)
    record = manifest.to_json() if manifest else {}
    own = Subject(name=name, record=record)
    members = {*member_names(own), *map(str, sequence(own.notes.get("bends")))}
    parts = list(_parts(directory, directory, without=members)) if with_parts else []
    return Subject(
        name=name,
        place=str(directory),
        record=record,
        facts=_facts(directory),
        sizes=_sizes(directory, own),
        plots=_plots(directory),
        path_scores=_json_file(directory / PATH_SCORES) if (directory / PATH_SCORES).is_file() else {},
        parts=sorted(parts, key=lambda part: (str(part.record.get("created")), part.name))[:MOST_PARTS],
    )


def _parts(directory: Path, root: Path, *, without: set[str], depth: int = DEEPEST) -> Iterator[Subject]:
    """The outputs below a directory, nearest first; a folder that is none itself is looked into."""
    for path in sorted(directory.iterdir()):
        if not path.is_dir() or path.name.startswith(".") or path.name in without:
            continue
        if (path / MANIFEST_NAME).is_file():
            yield _output(path, name=str(path.relative_to(root)), with_parts=False)
        elif depth > 1:
            yield from _parts(path, root, without=set(), depth=depth - 1)


def _facts(directory: Path) -> Json:
    """What headers tell of the weights; nothing where there are none."""
    try:
        return describe(Checkpoint(directory))
    except SoupkitError:
        return {}


def _sizes(directory: Path, subject: Subject) -> dict[str, int]:
    """The bytes of the inputs that are still where they were."""
    sizes = {}
    for entry in subject.inputs:
        if isinstance(entry.get("path"), str):
            try:
                sizes[str(entry.get("reference"))] = Checkpoint(directory / entry["path"]).num_bytes
            except SoupkitError:
                continue
    return sizes


def _plots(directory: Path) -> dict[str, bytes]:
    """The images in a directory, those that a page can carry."""
    found = sorted(path for path in directory.iterdir() if path.suffix.lower() in KINDS and path.is_file())
    return {path.name: path.read_bytes() for path in found if path.stat().st_size <= LARGEST_PLOT}


def _of_file(path: Path) -> Subject:
    """A record that was printed by --json, scores.json of an evaluation, or bare weights."""
    if path.suffix == ".safetensors":
        checkpoint = Checkpoint(path)
        return Subject(name=path.name, place=str(path), facts=describe(checkpoint))
    record = _json_file(path)
    if isinstance(record.get("steps"), Mapping):
        parts = [Subject(name=name, record=mapping(step)) for name, step in mapping(record["steps"]).items()]
        return Subject(name=path.name, parts=parts)
    if "command" not in record:  # scores.json, or what a command without a manifest printed
        metrics = record.get("metrics", {})
        record = {
            "metrics": metrics,
            "notes": {key: value for key, value in record.items() if key != "metrics"},
        }
    return Subject(name=path.name, record=record)


def _json_file(path: Path) -> Json:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReferenceError(f"{path}: no such file or directory", hint="check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ReferenceError(
            f"{path}: is not a JSON file: {error}", hint="name a directory, or what --json printed"
        ) from error
    if not isinstance(values, dict) or not values:
        raise ReferenceError(
            f"{path}: holds no record of soupkit", hint="name a directory, or what --json printed"
        )
    return values
