"""Waiting for another process: for what it does, never for a time in which a busy machine may not get to
it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANG = 500.0
"""Seconds after which something hangs; whatever is only slow, on a machine with other work, is done long
before."""


def wait_for(condition: Callable[[], Any], *, ended: Callable[[], int | None] = lambda: None) -> Any:
    """What `condition` returns once that is true; an AssertionError when there is an exit code, and still it
    is not."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        code = ended()
        if found := condition():
            return found
        assert code is None, f"the process ended with {code} and nothing happened"
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie, which only waits to be collected, does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
