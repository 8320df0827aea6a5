"""Forks that are killed: from outside, or by themselves where they change the disk."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
DEADLY = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "ftruncate", "posix_fallocate", "pwrite")
LIMIT = 120.0
"""Seconds after which a command hangs."""
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def adopt_orphans(adopt: bool = True) -> None:
    """Become the parent of what dead children leave running."""
    ctypes.CDLL(None).prctl(_SUBREAPER, int(adopt), 0, 0, 0)


def in_child(work: Callable[[], int], output: Path) -> int:
    """The process id of a fork that does `work`, with a session, default signals and an output file of its
    own."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # from Python 3.12 on, where a library has threads
        process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        for number in SIGNALS[1:]:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        code = work()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(process: int, seconds: float = LIMIT) -> int | None:
    """The exit code of a child (−N: of signal N); None when it hung, and was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def orphans(seconds: float = 10.0) -> int:
    """How many processes that dead children left do not end by themselves; they are ended here, their
    subreaper."""
    end, num = time.monotonic() + seconds, 0
    while True:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return num
        if not done and time.monotonic() > end:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for child in map(int, children):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return num + len(children)
        time.sleep(0.002)


def die_at(number: int, *, after: bool) -> Callable[[], int]:
    """Kill this process at its `number`-th change of the disk, before or after it; 0: never. Returns the
    counter."""
    calls = itertools.count(1)
    num = 0

    def patched(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal num
            num = this = next(calls)
            if this == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return plain(*arguments, **options)
            finally:
                if this == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in DEADLY:
        setattr(os, name, patched(getattr(os, name)))
    return lambda: num
