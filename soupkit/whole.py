"""Files that exist whole or not at all: the one way in which a single small file is written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = re.compile(r"\.(.*)\.soupkit-part-([0-9]+)(\.[^.]*)?", re.DOTALL)


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a hidden sibling to write, with the same suffix; it becomes `path` by one rename, or is gone on
    an error.

    The sibling is `.STEM.soupkit-part-PID.SUFFIX`; what killed processes left of `path` is removed first.
    sync: its bytes are on the disk before the rename. The folder must exist. Raises OSError.
    """
    remove_partial(path.parent, of=path)
    temporary = path.with_name(f".{path.stem}.soupkit-part-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if sync:
            sync_path(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def remove_partial(folder: Path, *, of: Path | None = None) -> None:
    """Remove what killed processes left half written in a folder: of one file, or of all."""
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208  (names only: a cache folder may hold many)
            match = _PARTIAL.fullmatch(name)
            if match and (of is None or final_name(name) == of.name) and not _is_alive(int(match[2])):
                with suppress(OSError):
                    (folder / name).unlink()


def final_name(name: str) -> str:
    """The name that a half-written file was to have; any other name as it is."""
    match = _PARTIAL.fullmatch(name)
    return f"{match[1]}{match[3] or ''}" if match else name


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def sync_path(path: Path) -> None:
    """Wait until a file's bytes, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
