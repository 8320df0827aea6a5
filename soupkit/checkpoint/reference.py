"""From what the user typed to checkpoints."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from soupkit.checkpoint import hub
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import ReferenceError
from soupkit.manifest import Manifest


def open_references(refs: Sequence[str], *, stream: bool = False) -> list[Checkpoint]:
    """Open every checkpoint that the references name, in order: globs sorted, sweep directories as their members.

    Reads headers only, those of the Hub by range requests. stream: read weights of the Hub by ranges too, instead of
    downloading them on first use. Raises ReferenceError, CheckpointError.
    """
    if not refs:
        raise ReferenceError("no checkpoint given", hint="name directories, .safetensors files, globs, or org/name")
    opened = [checkpoint for ref in refs for checkpoint in _open(ref, stream)]
    if stream:
        hub.share_buffers(opened)
    return opened


def open_checkpoint(ref: str) -> Checkpoint:
    """Open one checkpoint. Raises ReferenceError when the reference names several."""
    opened = _open(ref, stream=False)
    if len(opened) != 1:
        first = opened[0].reference
        raise ReferenceError(f"{ref}: names {len(opened)} checkpoints, expected one", hint=f"for example {first}")
    return opened[0]


def _open(ref: str, stream: bool) -> list[Checkpoint]:
    """What is here wins over what the Hub may have under the same name."""
    on_disk = local_path(ref).exists() or glob.has_magic(ref)
    if hub.looks_like_hub(ref) and not on_disk:
        return hub.open_hub(ref, stream=stream)
    return [Checkpoint(path, reference=str(path)) for path in expand(ref)]


def expand(ref: str) -> list[Path]:
    """The paths of the checkpoints behind one reference to this disk. Raises ReferenceError."""
    path = local_path(ref)
    if path.exists():
        return sweep_members(path) or [path]
    if glob.has_magic(ref):
        matches = glob_paths(ref)
        found = [match for match in matches if match.is_dir() or match.suffix == ".safetensors"]
        if not found:
            raise ReferenceError(f"{ref}: matches no directory and no .safetensors file", hint="check the pattern")
        return [inner for match in found for inner in sweep_members(match) or [match]]
    raise ReferenceError(f"{ref}: no such file or directory", hint="check the path; org/name is looked up on the Hub")


def local_path(ref: str) -> Path:
    """A reference as a path, its home directory expanded. Raises ReferenceError for what cannot be one."""
    try:
        path = Path(ref).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError) as error:
        raise ReferenceError(f"{ref!r}: cannot be a path: {error}", hint="check the path") from error
    return path


def glob_paths(ref: str) -> list[Path]:
    """What a pattern with *, ?, [] or ** matches, sorted."""
    pattern = str(local_path(ref))
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207  (may be absolute)


def sweep_members(directory: Path) -> list[Path]:
    """The members of a directory that several checkpoints were written into; empty for any other path."""
    manifest = Manifest.read_if_any(directory) if directory.is_dir() else None
    members = manifest.notes.get("members", []) if manifest else []
    return [directory / name for name in members]
