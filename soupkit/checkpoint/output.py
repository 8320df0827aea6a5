"""`OutputDirectory`: a directory that exists whole or not at all.

Everything is written into a temporary sibling `.NAME.soupkit-PID-XXXX`, which holds a lock while its writer
lives; at the end it is synced and renamed. A killed run leaves only such a sibling, without a lock, and the
next run removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from soupkit.checkpoint.header import Identity, identity_of
from soupkit.errors import CheckpointError, OutputError
from soupkit.manifest import MANIFEST_NAME
from soupkit.whole import remove_partial, sync_path

SPARE_BYTES = 16 << 20
"""Free disk to leave beyond what is written."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutputDirectory:
    """Context manager: gives a temporary directory; on success it becomes `out`, on any exception it is gone.

    num_bytes: what will be written, checked against the free disk. inputs: files that must not lie in `out`,
    and must be the same ones at the end. A link is followed: the directory that it leads to is made or
    replaced, it stays. Raises OutputError before anything is written when `out` exists (without overwrite),
    is an input, is not an output of soupkit (with overwrite), cannot be named or does not fit; at the end for
    whatever the disk refuses.
    """

    def __init__(
        self, out: Path, *, overwrite: bool = False, num_bytes: int = 0, inputs: Iterable[Path] = ()
    ) -> None:
        inputs = list(inputs)
        check_output(out, overwrite=overwrite, num_bytes=num_bytes, inputs=inputs)
        self.out = Path(out).resolve() if Path(out).is_symlink() else Path(out).absolute()
        self.overwrite = overwrite
        self._inputs = {path: identity for path in inputs if (identity := _identity(path))}

    def __enter__(self) -> Path:
        self._stack = contextlib.ExitStack()
        self._directory = self._stack.enter_context(temporary_sibling(self.out))
        return self._directory

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                self._check_inputs()
                with _as_output_error(self.out):
                    self._publish(self._directory)
        if isinstance(error, OSError) and error.errno is not None:
            with _as_output_error(self.out):
                raise error

    def _check_inputs(self) -> None:
        """An input that another has replaced meanwhile is not what the record would name; one that is gone is
        no harm: it was read."""
        for path, identity in self._inputs.items():
            if _identity(path) not in (identity, None):
                raise CheckpointError(
                    f"{path}: was replaced or changed while it was read", hint="run it again"
                )

    def _publish(self, directory: Path) -> None:
        """Sync, then rename into place; an earlier output is exchanged in one step and removed afterwards."""
        # Contents reach the disk before the name does: after a crash a name must not lead to half of them.
        _sync_tree(directory)
        check_output(self.out, overwrite=self.overwrite)  # again: the job may have taken hours
        try:
            directory.rename(self.out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _check_replaceable(self.out, self.overwrite)  # again: another writer may have been first
            _exchange(directory, self.out)
        try:
            sync_path(self.out.parent)
        except OSError as error:
            raise OutputError(
                f"{self.out}: is there and whole, but its folder cannot be brought to the disk: "
                f"{error.strerror}",
                hint="check the disk, then the output: soupkit verify",
            ) from error


@contextlib.contextmanager
def temporary_sibling(out: Path) -> Iterator[Path]:
    """A locked temporary directory beside `out`, removed at the end; what dead runs left there is removed
    first."""
    with _as_output_error(out):
        _make_folder(out.parent)
        remove_litter(out)
        directory, lock = _locked_directory(out)
    try:
        yield directory
    finally:
        with contextlib.suppress(OSError):  # the output is there by now, or an error is on its way
            shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # last: without the lock another run would remove it meanwhile
            os.close(lock)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, and have the entry of each on the disk."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(made):
        sync_path(path.parent)


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


def check_output(
    out: Path, *, overwrite: bool = False, num_bytes: int = 0, inputs: Iterable[Path] = ()
) -> None:
    """Refuse what must not or cannot be written, before any work. Raises OutputError."""
    try:
        _check_place(out, overwrite=overwrite, num_bytes=num_bytes, inputs=inputs)
    except (
        ValueError,
        RuntimeError,
    ) as error:  # a name with a zero, no UTF-8 under this locale; a loop of links
        raise OutputError(f"{str(out)!r}: cannot be a path: {error}", hint="choose another --out") from error
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written: {error.strerror}", hint="choose another --out"
        ) from error


def _check_place(out: Path, *, overwrite: bool, num_bytes: int, inputs: Iterable[Path]) -> None:
    target = out.resolve()
    for path in inputs:
        if target == path.resolve() or target in path.resolve().parents:
            raise OutputError(f"{out}: is also an input ({path})", hint="write to another directory")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: exists and is not a directory", hint="write to another path")
    if out.is_dir() and any(out.iterdir()):
        _check_replaceable(out, overwrite)
    existing = next(parent for parent in (target, *target.parents) if parent.exists())
    if not existing.is_dir():
        raise OutputError(f"{out}: {existing} is not a directory", hint="choose another --out")
    if target.exists() and not target.is_mount():
        existing = target.parent  # the output is made beside it
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            f"{existing}: is not writable", hint="choose another --out, or change its permissions"
        )
    _check_names(target, existing)
    free = shutil.disk_usage(existing).free
    if num_bytes and num_bytes + SPARE_BYTES > free:
        raise OutputError(
            f"{out}: needs {num_bytes / 1e9:.2f} GB, {existing} has {free / 1e9:.2f} GB free",
            hint="free some space, or write to another disk",
        )


def _check_names(target: Path, existing: Path) -> None:
    """Every folder to be made must have a name that the disk takes, the last one also with what is put before
    it."""
    longest = os.pathconf(existing, "PC_NAME_MAX")
    taken = len(os.fsencode(f"{_prefix(Path())}{2**22}-12345678"))
    new = target.relative_to(existing).parts
    for part in (*new[:-1], *([] if target == existing else [target.name])):
        room = longest - (taken if part == target.name else 0)
        if len(os.fsencode(part)) > room:
            raise OutputError(
                f"{target}: a folder's name of {len(os.fsencode(part))} bytes is too long, at most "
                f"{room} fit",
                hint="choose a shorter --out",
            )


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not overwrite:
        _remove_older_journal(out)
        raise OutputError(
            f"{out}: exists already", hint="choose another --out, or replace it with --overwrite"
        )
    if not (out / MANIFEST_NAME).is_file():
        raise OutputError(
            f"{out}: was not written by soupkit (it has no {MANIFEST_NAME}), so --overwrite does not "
            f"replace it",
            hint="remove it yourself if you are sure, or choose another --out",
        )


def remove_litter(out: Path) -> None:
    """Remove what dead runs left beside `out`: temporary directories whose lock can be taken, and a journal
    that is half written."""
    prefix = _prefix(out)
    for name in os.listdir(out.parent):  # noqa: PTH208  (no pattern: a name may hold *, ? and [)
        if name.startswith(prefix) and re.fullmatch(r"[0-9]+-\w+", name.removeprefix(prefix)):
            _remove_unlocked(out.parent / name)
    remove_partial(out.parent, of=journal_path(out))


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def journal_path(out: Path) -> Path:
    """Where a search keeps what it has found so far, beside its output: see `soupkit.soup.journal`."""
    return out.parent / f".{out.name}.soupkit-journal"


def _remove_older_journal(out: Path) -> None:
    """A search that was killed between its output and the end of its journal left one that nobody goes on
    from.

    One that is younger than the output belongs to a search that would replace it, and stays.
    """
    with contextlib.suppress(OSError):
        journal, manifest = journal_path(out), out / MANIFEST_NAME
        if journal.stat().st_mtime_ns < manifest.stat().st_mtime_ns:
            journal.unlink()


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
    """Swap two directories: in one step where the system can (renameat2 with RENAME_EXCHANGE), else in
    two."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    if renameat2 is not None and renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0:
        return
    aside = b.with_name(
        f"{b.name}.replaced-{os.getpid()}"
    )  # a kill here must not leave it looking like litter
    b.rename(aside)
    a.rename(b)
    aside.rename(a)


@contextlib.contextmanager
def _as_output_error(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = out if error.filename is None else Path(os.fsdecode(error.filename))
        if error.errno in _NO_SPACE:
            hint = "free some space, or write elsewhere"
            raise OutputError(f"{out}: {error.strerror}; nothing was left behind", hint=hint) from error
        why = error.strerror or str(error)
        raise OutputError(f"{out}: cannot be written: {where}: {why}", hint="choose another --out") from error


def _identity(path: Path) -> Identity | None:
    """Which file lies at a path; None when none does."""
    try:
        return identity_of(path.stat())
    except OSError:
        return None
