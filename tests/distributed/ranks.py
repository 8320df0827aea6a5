"""Runs a function of a test module in several ranks: real processes, real gloo."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from waiting import HANG

TESTS = Path(__file__).parents[1]
CODE = """
import pickle, sys
sys.path.insert(0, {tests!r})
from importlib import import_module
function = getattr(import_module({module!r}), {name!r})
result = function(*pickle.loads(bytes.fromhex({arguments!r})))
open({out!r}, "wb").write(pickle.dumps(result))
"""


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun would set for a rank on one machine."""
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(commands: list[list[str]], *, timeout: float = HANG) -> list[subprocess.CompletedProcess[str]]:
    """Start one process per rank and wait for all; a rank that fails ends the others, as torchrun does."""
    port = free_port()
    processes = [
        subprocess.Popen(
            command,
            env=environment(rank, len(commands), port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    done = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return done


def in_ranks(function: Callable[..., Any], *arguments: Any, size: int, folder: Path) -> list[Any]:
    """What `function(*arguments)`, of an importable module of the tests, returns in each of `size` ranks."""
    packed = pickle.dumps(arguments).hex()
    commands = []
    for rank in range(size):
        out = str(folder / f"rank-{rank}.pickle")
        code = CODE.format(
            tests=str(TESTS), module=function.__module__, name=function.__name__, arguments=packed, out=out
        )
        commands.append([sys.executable, "-c", code])
    for rank, done in enumerate(run_ranks(commands)):
        assert done.returncode == 0, f"rank {rank}: {done.stderr}"
    return [pickle.loads((folder / f"rank-{rank}.pickle").read_bytes()) for rank in range(size)]
