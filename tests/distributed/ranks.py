"""Runs a function of a test module in several ranks: real processes, real gloo."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import Child, fork


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


def run_ranks(function: Callable[..., Any], *arguments: Any, size: int, folder: Path) -> list[Child]:
    """Call `function(*arguments)` in one process per rank and wait for all; none is left behind."""
    port, ranks = free_port(), []
    try:
        for rank in range(size):
            child = fork(
                function,
                *arguments,
                folder=folder / f"rank-{rank}",
                environment=environment(rank, size, port),
            )
            ranks.append(child)
        for child in ranks:
            child.wait()
    finally:
        for child in ranks:
            child.end()
    return ranks


def in_ranks(function: Callable[..., Any], *arguments: Any, size: int, folder: Path) -> list[Any]:
    """What `function(*arguments)`, of an importable module of the tests, returns in each of `size` ranks."""
    children = run_ranks(function, *arguments, size=size, folder=folder)
    for rank, child in enumerate(children):
        assert child.wait() == 0, f"rank {rank}: {child.stderr}"
    return [child.returned() for child in children]
