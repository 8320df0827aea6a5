"""Waiting for another process: for what it does, never for a time in which a busy machine may not get to it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANG = 500.0
"""Seconds after which something hangs; whatever is only slow, on a machine with other work, is done long before."""


def wait_for(condition: Callable[[], Any], *, process: subprocess.Popen[Any] | None = None) -> Any:
    """What `condition` returns once that is true; an AssertionError when `process` ended without it."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        ended = process is not None and process.poll() is not None
        if found := condition():
            return found
        assert not ended, f"the process ended with {process.returncode if process else None} and nothing happened"
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie, which only waits to be collected, does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
