"""`soupkit.json`: what made an output, from what, and how good it was. It is enough to make the output
again."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from soupkit import __version__
from soupkit.commands import COMMANDS
from soupkit.errors import CheckpointError, brief
from soupkit.given import given_by
from soupkit.identity import version_of
from soupkit.jsons import Json
from soupkit.processor import instruction_set
from soupkit.whole import whole_file

MANIFEST_NAME = "soupkit.json"
FORMAT = 1
_PACKAGES = ("numpy", "ml_dtypes", "torch", "timm", "open_clip_torch", "safetensors", "scikit-learn", "scipy")
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""How the system says that there is no such file; a disk that fails says something else."""
_NOT_LOOKED_AT = {"": ""}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of one output.

    command, recipe: what was asked, every option. inputs: {reference, path (relative to the output), content}
    of each ingredient. outputs: {content, files}. metrics: {split: {metric: {value, standard_error,
    num_examples}}}. mixture: the coefficients. trace: the steps of a search. notes: what a command adds
    (members, hyper-parameters, …). given: the identities of data, scorer and files that the recipe of a
    command names, when this was made.
    """

    command: str
    recipe: Json
    inputs: list[Json] = field(default_factory=list)
    outputs: Json = field(default_factory=dict)
    metrics: Json = field(default_factory=dict)
    mixture: Json | None = None
    trace: list[Json] = field(default_factory=list)
    notes: Json = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=lambda: dict(_NOT_LOOKED_AT))
    format: int = FORMAT
    soupkit: str = __version__
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.given == _NOT_LOOKED_AT:
            object.__setattr__(self, "given", given_by(self.recipe) if self.command in COMMANDS else {})

    def to_json(self) -> Json:
        """The manifest as JSON-able values."""
        return dataclasses.asdict(self)

    def write(self, directory: Path) -> None:
        """Write it into `directory`, whole or not at all."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        with whole_file(directory / MANIFEST_NAME) as temporary:
            temporary.write_bytes(
                text.encode(errors="backslashreplace")
            )  # a name that is no UTF-8, as JSON writes it

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read the manifest of an output. Raises CheckpointError when there is none or it is not one."""
        path = directory / MANIFEST_NAME
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for without end
                raise CheckpointError(f"{path}: is no regular file")
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file", hint="only outputs of soupkit have a manifest"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        return _checked(values, path)

    @classmethod
    def read_if_any(cls, directory: Path) -> Manifest | None:
        """Read the manifest of a directory, None when it has none."""
        path = directory / MANIFEST_NAME
        try:
            path.stat()
        except ValueError:
            return None
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        return cls.read(directory)


LONGEST_PATH, LONGEST_NAME = 4096, 255
"""Bytes that Linux takes."""
_KINDS = {
    "command": str,
    "recipe": dict,
    "inputs": list,
    "outputs": dict,
    "metrics": dict,
    "trace": list,
    "notes": dict,
}
_INPUT_KINDS = {
    "reference": str,
    "path": str,
    "content": str,
    "companions": str,
    "commit": str,
    "sha256": dict,
    "permutation": dict,
}


def _checked(values: object, path: Path) -> Manifest:
    """Whoever reads a manifest may rely on these kinds, and on names that lead nowhere else than into its
    directory."""
    if not isinstance(values, dict) or any(
        not isinstance(values.get(key), kind) for key, kind in _KINDS.items()
    ):
        raise CheckpointError(f"{path}: is not a manifest of soupkit")
    for what, holds in _parts(values):
        if not holds:
            raise CheckpointError(f"{path}: is not a manifest of soupkit: {what} is not what it should be")
    if type(values.get("format")) is not int or values["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has manifest format {values.get('format')!r}, this soupkit reads up to {FORMAT}",
            hint="upgrade soupkit",
        )
    names = {entry.name for entry in dataclasses.fields(Manifest)}
    return Manifest(**{"given": {}} | {key: value for key, value in values.items() if key in names})


def _parts(values: Json) -> Iterator[tuple[str, bool]]:
    """What must hold of a manifest's parts, each with its name."""
    for number, entry in enumerate(values["inputs"]):
        is_input = isinstance(entry, dict) and isinstance(entry.get("reference"), str)
        yield (
            f"inputs.{number}",
            is_input and all(isinstance(entry.get(k, v()), v) for k, v in _INPUT_KINDS.items()),
        )
        yield f"inputs.{number}.path", is_path(entry.get("path", ""))
        yield (
            f"inputs.{number}.permutation",
            all(isinstance(v, str) for v in entry.get("permutation", {}).values()),
        )
    files, members = values["outputs"].get("files", {}), values["notes"].get("members", [])
    yield (
        "outputs.files",
        isinstance(files, dict) and all(isinstance(entry, dict) for entry in files.values()),
    )
    yield "outputs.files", all(is_inside(name) for name in files)
    yield "notes.members", isinstance(members, list) and all(is_plain_name(name) for name in members)
    yield "outputs.content", isinstance(values["outputs"].get("content", ""), str)
    given = values.get("given", {})
    yield "given", isinstance(given, dict) and all(isinstance(each, str) for each in given.values())
    yield "mixture", values.get("mixture") is None or _is_mixture(values["mixture"], len(values["inputs"]))
    yield "metrics", all(isinstance(split, dict) for split in values["metrics"].values())
    for split, scores in values["metrics"].items():
        yield f"metrics.{brief(split)}", all(map(_is_score, scores.values()))
    yield "trace", all(isinstance(step, dict) for step in values["trace"])
    yield "versions", isinstance(values.get("versions", {}), dict)
    yield "created", isinstance(values.get("created", ""), str) and isinstance(values.get("soupkit", ""), str)


def _is_score(score: object) -> bool:
    """A number or what stands for one that is not finite, a record with a `value`, or a map of these for a
    member."""
    if not isinstance(score, dict):
        return _is_number(score) or score is None or isinstance(score, str | list)
    if "value" not in score:
        return all(map(_is_score, score.values()))
    optional = (score.get("standard_error"), score.get("num_examples"))
    return _is_number(score["value"]) and all(value is None or _is_number(value) for value in optional)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) >= 2**1000


def _is_mixture(mixture: object, num_inputs: int) -> bool:
    """A matrix of numbers with a row per input, a divisor, and columns of it by tensor."""
    if not isinstance(mixture, dict) or not isinstance(rows := mixture.get("coefficients"), list):
        return False
    names, blocks = mixture.get("ingredients"), mixture.get("blocks")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    if (
        not len(rows) == len(names) == num_inputs
        or not rows
        or not all(isinstance(row, list) and row for row in rows)
    ):
        return False
    width = len(rows[0])
    if not all(len(row) == width and all(map(_is_number, row)) for row in rows):
        return False
    if not _is_number(mixture.get("divisor")) or mixture["divisor"] == 0:
        return False
    columns = list(blocks.values()) if isinstance(blocks, dict) else []
    return (blocks is None or isinstance(blocks, dict)) and all(
        type(n) is int and 0 <= n < width for n in columns
    )


def is_plain_name(name: object) -> bool:
    """Whether this names a file or folder directly in a directory, and nothing outside of it."""
    return (
        isinstance(name, str) and is_path(name) and name not in ("", ".", "..") and not set(name) & set("/\\")
    )


def is_path(text: object) -> bool:
    """Whether the system can be asked for this path at all: it has lengths that names may have, and no
    zero."""
    try:
        path = os.fsencode(text) if isinstance(text, str) else b"\0"
    except UnicodeEncodeError:
        return False
    return (
        b"\0" not in path
        and len(path) < LONGEST_PATH
        and all(len(p) <= LONGEST_NAME for p in path.split(b"/"))
    )


def is_inside(name: object) -> bool:
    """Whether this names a file in a directory or in folders of it, and nothing outside of it."""
    return isinstance(name, str) and all(is_plain_name(part) for part in name.split("/"))


def installed_versions() -> dict[str, str]:
    """Versions of what shapes a result, and the instruction set; looked up without importing any of it."""
    versions = {"python": platform.python_version(), "processor": instruction_set()}
    found = {package: version_of(package) for package in _PACKAGES}
    return versions | {package: version for package, version in found.items() if version is not None}
