"""A folder that several checkpoints are trained into over a long time, held by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soupkit.errors import OutputError
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.whole import remove_partial

LOCK_NAME = ".soupkit-lock"


@contextmanager
def held(out: Path, *, command: str, what: str, mark: str | None = None) -> Iterator[None]:
    """Hold `out`: made if need be, locked against another process, freed of what a killed one left half
    written.

    command: whose output may be there already, and `what` that is. mark: a name in the folder by which one
    that has no manifest yet is known to be of this command. Raises OutputError when it is in use, or holds
    something else.
    """
    _check_kind(out, command, what, mark)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written: {error.strerror}", hint="choose another --out"
        ) from error
    try:
        _lock(lock, out, what)
        remove_partial(out)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, out: Path, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise OutputError(
            f"{out}: another {what} is running in this directory",
            hint="wait for it, end it, or choose another --out",
        ) from None


def _check_kind(out: Path, command: str, what: str, mark: str | None) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: exists and is not a directory", hint="choose another --out")
    manifest = Manifest.read_if_any(out)
    if manifest is not None and manifest.command != command:
        raise OutputError(
            f"{out}: holds the output of soupkit {manifest.command}", hint="choose another --out"
        )
    known = manifest is not None or (mark is not None and (out / mark).exists())
    if not known and any(not path.name.startswith(".") for path in out.iterdir()):
        raise OutputError(f"{out}: exists and is no {what} (no {MANIFEST_NAME})", hint="choose another --out")
