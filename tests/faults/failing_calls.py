"""File-system calls of this process that fail as a disk does: the k-th of them, or all from the k-th on."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CODES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}
CALLS = (
    "access", "chmod", "close", "fstat", "fsync", "ftruncate", "link", "listdir", "lstat", "mkdir", "open",
    "pathconf", "posix_fallocate", "pread", "preadv", "pwrite", "read", "readlink", "rename", "replace",
    "rmdir", "scandir", "sendfile", "stat", "statvfs", "symlink", "unlink", "utime", "write",
)  # fmt: skip
_ELSEWHERE = (
    sys.prefix,
    sys.base_prefix,
    str(Path(__file__).parent.parent.parent),
    "/proc/",
    "/sys/",
    "/dev/",
)
"""Libraries and the system itself: a disk that fails there ends the interpreter, not a command."""
_plain_open = io.open


class Calls:
    """Counts the calls, and has those that are to fail fail.

    number: the first that fails, 0: none; onwards: all later ones too. A close that fails has closed, as on
    Linux; any other call that fails has done nothing.
    """

    def __init__(self, number: int, code: int, *, onwards: bool) -> None:
        self.number, self.code, self.onwards = number, code, onwards
        self.count, self.name = 0, ""

    def __call__(self, name: str, place: object) -> None:
        """One more call; OSError where it is to fail."""
        if isinstance(place, str | os.PathLike) and os.path.abspath(place).startswith(_ELSEWHERE):  # noqa: PTH100
            return
        self.count += 1
        if self.number and (self.count == self.number or (self.onwards and self.count > self.number)):
            self.name = self.name or f"{name} {place if not isinstance(place, int) else ''}".strip()
            raise OSError(self.code, os.strerror(self.code), *([place] if isinstance(place, str) else []))


def fail_at(number: int, code: int, *, onwards: bool = False) -> Callable[[], int]:
    """Have calls of this process fail from now on. Returns the counter, which says the call that failed on
    stderr."""
    calls = Calls(number, code, onwards=onwards)
    for name in CALLS:
        setattr(os, name, _failing(calls, name, getattr(os, name)))
    fcntl.flock = _failing(calls, "flock", fcntl.flock)
    builtins.open = io.open = _opener(calls)

    def counted() -> int:
        if calls.name:
            os.write(2, f"\nfailed: {calls.name}\n".encode(errors="replace"))
        return calls.count

    return counted


def _failing(calls: Calls, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        place = arguments[0] if arguments else options.get("path", "")
        if name in ("write", "read", "close") and place in (0, 1, 2):
            return plain(*arguments, **options)
        try:
            calls(name, place)
        except OSError:
            if name == "close":
                plain(*arguments, **options)
            raise
        return plain(*arguments, **options)

    return call


def _opener(calls: Calls) -> Callable[..., Any]:
    """`open`, of whose files every read, write and close is a call too."""

    class Raw(io.FileIO):
        def readinto(self, buffer: Any) -> Any:
            calls("read", self.name)
            return super().readinto(buffer)

        def readall(self) -> Any:
            calls("read", self.name)
            return super().readall()

        def write(self, data: Any) -> Any:
            calls("write", self.name)
            return super().write(data)

        def close(self) -> None:
            was_open = not self.closed
            super().close()
            if was_open:
                calls("close", self.name)

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        place = os.fspath(file) if isinstance(file, os.PathLike) else file
        calls("open", place)
        if isinstance(place, int) or place.startswith(_ELSEWHERE):
            return _plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else None
        if buffered is None:
            buffered = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    return opened
