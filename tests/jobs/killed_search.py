"""A learned soup in a process of its own, which kills itself."""

from __future__ import annotations

import os
import signal
from typing import Any

from soupkit.cli.app import run_command_line


def killed_after_two_epochs(words: list[str]) -> None:
    """Run a command that dies of SIGKILL when its second epoch is in the journal."""
    from soupkit.soup.journal import Journal

    keep = Journal.keep

    def kept(self: Journal, stage: str, state: dict[str, Any]) -> None:
        keep(self, stage, state)
        if state["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.keep = kept  # type: ignore[method-assign]
    run_command_line(words)
