"""`OutputDirectory`: a directory that exists whole or not at all.

Everything is written into a temporary sibling `.NAME.soupkit-PID-XXXX`, which holds a lock while its writer lives; at
the end it is synced and renamed. A killed run leaves only such a sibling, without a lock, and the next run removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from soupkit.errors import OutputError
from soupkit.manifest import MANIFEST_NAME
from soupkit.whole import sync_path

SPARE_BYTES = 16 << 20
"""Free disk to leave beyond what is written."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutputDirectory:
    """Context manager: gives a temporary directory; on success it becomes `out`, on any exception it is gone.

    num_bytes: what will be written, checked against the free disk. inputs: paths that must not lie in `out`.
    Raises OutputError before anything is written when `out` exists (without overwrite), is an input, is not an
    output of soupkit (with overwrite), or does not fit.
    """

    def __init__(self, out: Path, *, overwrite: bool = False, num_bytes: int = 0, inputs: Iterable[Path] = ()) -> None:
        self.out = Path(out).absolute()
        self.overwrite = overwrite
        check_output(self.out, overwrite=overwrite, num_bytes=num_bytes, inputs=inputs)

    def __enter__(self) -> Path:
        self._stack = contextlib.ExitStack()
        self._directory = self._stack.enter_context(temporary_sibling(self.out))
        return self._directory

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                with _as_output_error(self.out):
                    self._publish(self._directory)
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise _no_space(self.out, error) from error

    def _publish(self, directory: Path) -> None:
        """Sync, then rename into place; an earlier output is exchanged in one step and removed afterwards."""
        _sync_tree(directory)
        check_output(self.out, overwrite=self.overwrite)
        try:
            directory.rename(self.out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _check_replaceable(self.out, self.overwrite)  # again: another writer may have been first
            _exchange(directory, self.out)
        sync_path(self.out.parent)


@contextlib.contextmanager
def temporary_sibling(out: Path) -> Iterator[Path]:
    """A locked temporary directory beside `out`, removed at the end; what dead runs left there is removed first."""
    with _as_output_error(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_litter(out)
        directory, lock = _locked_directory(out)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _locked_directory(out: Path) -> tuple[Path, int]:
    """A new temporary sibling and the descriptor that holds its lock.

    Until it is locked it looks like litter, and another process may remove it: then a new one is made.
    """
    while True:
        directory = Path(tempfile.mkdtemp(prefix=f"{_prefix(out)}{os.getpid()}-", dir=out.parent))
        with contextlib.suppress(FileNotFoundError):
            directory.chmod(0o777 & ~_umask())
            lock = os.open(directory, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if directory.exists():
                return directory, lock
            os.close(lock)


def check_output(out: Path, *, overwrite: bool = False, num_bytes: int = 0, inputs: Iterable[Path] = ()) -> None:
    """Refuse what must not or cannot be written, before any work. Raises OutputError."""
    target = out.resolve()
    for path in inputs:
        if target == path.resolve() or target in path.resolve().parents:
            raise OutputError(f"{out}: is also an input ({path})", hint="write to another directory")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: exists and is not a directory", hint="write to another path")
    if out.is_dir() and any(out.iterdir()):
        _check_replaceable(out, overwrite)
    existing = next(parent for parent in (target, *target.parents) if parent.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{existing}: is not writable", hint="choose another --out, or change its permissions")
    free = shutil.disk_usage(existing).free
    if num_bytes and num_bytes + SPARE_BYTES > free:
        raise OutputError(
            f"{out}: needs {num_bytes / 1e9:.2f} GB, {existing} has {free / 1e9:.2f} GB free",
            hint="free some space, or write to another disk",
        )


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(f"{out}: exists already", hint="choose another --out, or replace it with --overwrite")
    if not (out / MANIFEST_NAME).is_file():
        raise OutputError(
            f"{out}: was not written by soupkit (it has no {MANIFEST_NAME}), so --overwrite does not replace it",
            hint="remove it yourself if you are sure, or choose another --out",
        )


def remove_litter(out: Path) -> None:
    """Remove temporary siblings of `out` whose writers are dead: those whose lock can be taken."""
    for path in out.parent.glob(f"{_prefix(out)}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _prefix(out: Path) -> str:
    return f".{out.name}.soupkit-"


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        sync_path(path)
    sync_path(directory)


def _exchange(a: Path, b: Path) -> None:
    """Swap two directories: in one step where the system can (renameat2 with RENAME_EXCHANGE), else in two."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    if renameat2 is not None and renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0:
        return
    aside = b.with_name(f"{b.name}.replaced-{os.getpid()}")  # a kill here must not leave it looking like litter
    b.rename(aside)
    a.rename(b)
    aside.rename(a)


@contextlib.contextmanager
def _as_output_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _no_space(out, error) from error
        raise OutputError(f"{out}: cannot be written: {error.strerror}", hint="choose another --out") from error


def _no_space(out: Path, error: OSError) -> OutputError:
    return OutputError(f"{out}: {error.strerror}; nothing was left behind", hint="free some space, or write elsewhere")
