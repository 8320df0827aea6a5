"""From what the user typed to checkpoints."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.formats.foreign import glob_hint
from soupkit.checkpoint.formats.numpy_files import NPZ, PICKLES
from soupkit.checkpoint.hub import hub
from soupkit.checkpoint.order import naturally
from soupkit.errors import ReferenceError
from soupkit.manifest import Manifest


def open_references(refs: Sequence[str], *, stream: bool = False) -> list[Checkpoint]:
    """Open every checkpoint that the references name, in order: what a glob or a sweep directory holds in
    natural order (step-900 before step-1000), and ranges {1000..9000..1000} number by number.

    Reads headers only, those of the Hub by range requests. stream: read weights of the Hub by ranges too,
    instead of downloading them on first use. Raises ReferenceError, CheckpointError.
    """
    if not refs:
        raise ReferenceError(
            "no checkpoint given", hint="name directories, .safetensors files, globs, or org/name"
        )
    opened = [checkpoint for ref in refs for each in spelled_out(ref) for checkpoint in _open(each, stream)]
    if stream:
        hub.share_buffers(opened)
    return opened


_RANGE = re.compile(r"\{([0-9]{1,18})\.\.([0-9]{1,18})(?:\.\.([0-9]{1,18}))?\}")


def spelled_out(ref: str) -> list[str]:
    """Every reference that one with ranges stands for: `org/name@step{1000..3000..1000}` for three revisions.

    As in a shell: both ends belong to it, the third number is the step, and numbers keep the width of a
    padded start. Raises ReferenceError for a range that is empty, and for more than hub.MOST_BRANCHES
    references together.
    """
    found = _spelled_out(ref, hub.MOST_BRANCHES, ref)
    if len(found) > 1:
        hub.check_braces(found[0], times=len(found))  # what is left of them is the Hub's, and multiplies
    return found


def _spelled_out(ref: str, room: int, whole: str) -> list[str]:
    """As spelled_out, of at most `room` references; `whole` is what was typed."""
    found = _RANGE.search(ref)
    if found is None or local_path(ref).exists():
        return [ref]
    first, last, step = int(found[1]), int(found[2]), int(found[3] or 1)
    if step > 0 and (last - first) // step >= room:
        raise hub.too_many(whole)
    if step < 1 or last < first:
        raise ReferenceError(
            f"{ref}: {found[0]} is an empty range", hint="write {first..last} or {first..last..step}"
        )
    width = len(found[1]) if found[1].startswith("0") else 0
    spelled = [
        f"{ref[: found.start()]}{n:0{width}d}{ref[found.end() :]}" for n in range(first, last + 1, step)
    ]
    inner: list[str] = []
    for each in spelled:
        inner += _spelled_out(each, room - len(inner), whole)
        if len(inner) > room:
            raise hub.too_many(whole)
    return inner


def open_checkpoint(ref: str) -> Checkpoint:
    """Open one checkpoint. Raises ReferenceError when the reference names several."""
    opened = _open(ref, stream=False)
    if len(opened) != 1:
        first = opened[0].reference
        raise ReferenceError(
            f"{ref}: names {len(opened)} checkpoints, expected one", hint=f"for example {first}"
        )
    return opened[0]


def _open(ref: str, stream: bool) -> list[Checkpoint]:
    return OPENERS[scheme_of(ref)](ref, stream)


def scheme_of(ref: str) -> str:
    """Which of OPENERS a reference is for; what is here wins over what the Hub may have under the same
    name."""
    on_disk = local_path(ref).exists() or glob.has_magic(ref)
    return "hf" if hub.looks_like_hub(ref) and not on_disk else "path"


OPENERS: Mapping[str, Callable[[str, bool], list[Checkpoint]]] = {
    "path": lambda ref, _stream: [Checkpoint(path, reference=str(path)) for path in expand(ref)],
    "hf": lambda ref, stream: hub.open_hub(ref, stream=stream),
}
"""How the checkpoints behind one reference are opened, by its scheme; the flag: read by ranges what is not
here."""


FILES = (".safetensors", NPZ, *PICKLES)
"""Files of which each is a checkpoint of its own."""


def expand(ref: str) -> list[Path]:
    """The paths of the checkpoints behind one reference to this disk. Raises ReferenceError."""
    path = local_path(ref)
    if path.exists():
        return sweep_members(path) or [path]
    if glob.has_magic(ref):
        matches = glob_paths(ref)
        found = [match for match in matches if match.is_dir() or match.suffix in FILES]
        if not found:
            raise ReferenceError(
                f"{ref}: matches no directory and no {', '.join(FILES)} file", hint=glob_hint(ref, matches)
            )
        return [inner for match in found for inner in sweep_members(match) or [match]]
    raise ReferenceError(
        f"{ref}: no such file or directory", hint="check the path; org/name is looked up on the Hub"
    )


def local_path(ref: str) -> Path:
    """A reference as a path, its home directory expanded. Raises ReferenceError for what cannot be one."""
    try:
        path = Path(ref).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError) as error:
        raise ReferenceError(f"{ref!r}: cannot be a path: {error}", hint="check the path") from error
    return path


def glob_paths(ref: str) -> list[Path]:
    """What a pattern with *, ?, [] or ** matches, in natural order."""
    pattern = str(local_path(ref))
    return [Path(match) for match in naturally(glob.glob(pattern, recursive=True))]  # noqa: PTH207  (may be absolute)


def sweep_members(directory: Path) -> list[Path]:
    """The members of a directory that several checkpoints were written into; empty for any other path.

    In the order in which they were written; `convert` once took patterns as text, which nobody chose.
    """
    manifest = Manifest.read_if_any(directory) if directory.is_dir() else None
    members = manifest.notes.get("members", []) if manifest else []
    by_convert = manifest is not None and manifest.command == "convert"
    if by_convert and all(isinstance(name, str) for name in members) and members == sorted(members):
        members = naturally(members)
    return [directory / name for name in members]
