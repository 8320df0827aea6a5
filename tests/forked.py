"""Processes of their own, forked by a server that has imported torch once: that takes an interpreter
seconds."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from waiting import HANG

from soupkit.train.pool import HEAVY

SERVER = multiprocessing.get_context("forkserver")
IMPORTED = [
    HEAVY,
    "soupkit.report.plots",
    "matplotlib.figure",
    "sklearn.datasets",
    "torch.distributed",
    "torch.distributed.checkpoint",
]


@dataclass(frozen=True)
class Child:
    """A process, and the folder where what it prints and returns is kept."""

    process: ForkServerProcess
    folder: Path

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        self.process.join(HANG)
        assert self.process.exitcode is not None, f"hangs: {self.stderr}"
        return self.process.exitcode

    def end(self) -> None:
        """Kill it where it still runs."""
        self.process.kill()
        self.process.join()

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def returned(self) -> Any:
        """What its function returned."""
        return pickle.loads((self.folder / "returned").read_bytes())


def fork(
    function: Callable[..., Any], *arguments: Any, folder: Path, environment: Mapping[str, str] = os.environ
) -> Child:
    """Call `function(*arguments)`, of an importable module, in a process that has run nothing before."""
    folder.mkdir(parents=True)
    SERVER.set_forkserver_preload(IMPORTED)
    process = SERVER.Process(target=_live, args=(function, arguments, dict(environment), folder))
    process.start()
    return Child(process, folder)


def command_line(words: list[str]) -> None:
    """`python -m soupkit …`."""
    from soupkit.cli.app import run_command_line

    sys.exit(run_command_line(words))


def _live(
    function: Callable[..., Any], arguments: tuple[Any, ...], environment: Mapping[str, str], folder: Path
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    (folder / "returned").write_bytes(pickle.dumps(function(*arguments)))
