"""Work for worker processes: small, and sometimes fatal."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from soupkit.errors import OutputError
from soupkit.events import Report, Told


def double(number: int, report: Report) -> tuple[int, int, str | None]:
    report(Told(f"doubling {number}"))
    return 2 * number, os.getpid(), os.environ.get("OMP_NUM_THREADS")


def fail(how: str, report: Report) -> None:
    report(Told(how))
    if how == "user":
        raise OutputError("the disk is full", hint="buy another")
    if how == "bug":
        raise ZeroDivisionError("a bug")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal does to the whole group
    time.sleep(3600)


def die_once(mark: str, fatal: bool, report: Report) -> str:
    """Killed in its first attempt, if it is to be; `mark` is a file that remembers."""
    if fatal and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    report(Told("alive"))
    return "done"
