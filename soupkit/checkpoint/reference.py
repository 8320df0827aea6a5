"""From what the user typed to checkpoints."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import ReferenceError
from soupkit.manifest import Manifest

HUB = re.compile(r"(hf://)?[\w.-]+/[\w.-]+(@[^:]+)?(:.+)?")


def open_references(refs: Sequence[str]) -> list[Checkpoint]:
    """Open every checkpoint that the references name, in order: globs sorted, sweep directories as their members.

    Reads headers only. Raises ReferenceError, CheckpointError.
    """
    if not refs:
        raise ReferenceError("no checkpoint given", hint="name directories, .safetensors files, or globs")
    return [_open(path) for ref in refs for path in expand(ref)]


def open_checkpoint(ref: str) -> Checkpoint:
    """Open one checkpoint. Raises ReferenceError when the reference names several."""
    paths = expand(ref)
    if len(paths) != 1:
        raise ReferenceError(f"{ref}: names {len(paths)} checkpoints, expected one", hint=f"for example {paths[0]}")
    return _open(paths[0])


def _open(path: Path) -> Checkpoint:
    return Checkpoint(path, reference=str(path))


def expand(ref: str) -> list[Path]:
    """The checkpoint paths behind one reference. Raises ReferenceError."""
    path = Path(ref).expanduser()
    if ref.startswith("hf://"):
        raise _missing(ref)
    if path.exists():
        return sweep_members(path) or [path]
    if glob.has_magic(ref):
        matches = glob_paths(ref)
        found = [match for match in matches if match.is_dir() or match.suffix == ".safetensors"]
        if not found:
            raise ReferenceError(f"{ref}: matches no directory and no .safetensors file", hint="check the pattern")
        return [inner for match in found for inner in sweep_members(match) or [match]]
    raise _missing(ref)


def glob_paths(ref: str) -> list[Path]:
    """What a pattern with *, ?, [] or ** matches, sorted."""
    pattern = str(Path(ref).expanduser())
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207  (may be absolute)


def sweep_members(directory: Path) -> list[Path]:
    """The members of a directory that several checkpoints were written into; empty for any other path."""
    manifest = Manifest.read_if_any(directory) if directory.is_dir() else None
    members = manifest.notes.get("members", []) if manifest else []
    return [directory / name for name in members]


def _missing(ref: str) -> ReferenceError:
    if HUB.fullmatch(ref):
        return ReferenceError(
            f"{ref}: no such file or directory, and this version of soupkit does not read from the Hugging Face Hub",
            hint=f"download it first: hf download {ref.removeprefix('hf://')} --local-dir DIR",
        )
    return ReferenceError(f"{ref}: no such file or directory", hint="check the path")
