"""`kill -9` at random moments of a merge with sharded output: a whole output or none, and the next run
succeeds.

SOUPKIT_KILLS=200 pytest tests/faults/test_kill_merge.py
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

Save = Callable[..., Path]
NUM_KILLS = int(os.environ.get("SOUPKIT_KILLS", "8"))
SHARDS = ("--max-shard-size", "1MB", "--quiet", "--threads", "1")
# The interpreter's start and its imports are the same for every run: they happen once, and each merge is a
# fork.
RUN = """
import json, os, sys
from soupkit.cli.app import run_command_line
import soupkit.jobs.merge.uniform
for line in sys.stdin:
    process = os.fork()
    if not process:
        code = 70
        try:
            code = run_command_line(json.loads(line))
        finally:
            os._exit(code)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def weights(seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {f"layer{number}": draw.standard_normal((300, 300), np.float32) for number in range(40)}


@pytest.fixture
def sources(save: Save) -> list[Path]:
    made = [save(f"source{seed}", weights(seed), max_shard_bytes=2_000_000) for seed in range(3)]
    for path in made:
        (path / "config.json").write_text('{"architecture": "toy"}')
    return made


class Merges:
    """Merges in processes of their own, one at a time."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdin
        assert server.stdout
        self.commands, self.answers = server.stdin, server.stdout

    def start(self, arguments: Sequence[str]) -> int:
        """The process id of a merge that runs."""
        print(json.dumps(arguments), file=self.commands, flush=True)
        return int(self.answers.readline())

    def end(self) -> int:
        """The exit code of the merge that was started last."""
        return int(self.answers.readline())

    def duration(self, arguments: Sequence[str]) -> float:
        """Seconds of one merge that nobody disturbs."""
        begin = time.perf_counter()
        self.start(arguments)
        assert self.end() == 0
        return time.perf_counter() - begin

    def killed(self, arguments: Sequence[str], seconds: float) -> None:
        """A merge that is killed after so many seconds, if it has not ended."""
        process = self.start(arguments)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        assert self.end() in (0, -signal.SIGKILL)


@pytest.fixture(scope="module")
def merges() -> Iterator[Merges]:
    with subprocess.Popen(
        [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as made:
        yield Merges(made)


def assert_whole(out: Path, expected: dict[str, Any]) -> None:
    """Files, headers, every byte of the weights, and the manifest."""
    manifest = Manifest.read(out)
    assert manifest.outputs == expected
    assert set(manifest.outputs["files"]) | {"soupkit.json", "README.md"} == {
        path.name for path in out.iterdir()
    }
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 10
    assert content_hash(open_checkpoint(str(out)), threads=1) == expected["content"]


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]


@pytest.mark.slow
def test_killed_merges(merges: Merges, sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["merge", "uniform", *map(str, sources), "--out", str(out), *SHARDS]
    reference = ["merge", "uniform", *map(str, sources), "--out", str(tmp_path / "reference"), *SHARDS]
    merges.duration(reference)  # the first one is slower: its files are not in memory yet
    seconds = merges.duration([*reference, "--overwrite"])
    expected = Manifest.read(tmp_path / "reference").outputs
    moments = random.Random(0)
    outcomes = {"nothing": 0, "whole": 0, "litter": 0}
    for _ in range(NUM_KILLS):
        merges.killed(arguments, moments.uniform(0, 1.1 * seconds))
        outcomes["litter"] += bool(leftovers(out))
        if out.exists():
            assert_whole(out, expected)
            outcomes["whole"] += 1
        else:
            outcomes["nothing"] += 1
            assert run_command_line(arguments) == 0
            assert_whole(out, expected)
        assert run_command_line([*arguments, "--overwrite"]) == 0  # also clears what a killed one left
        assert not leftovers(out)
        for path in [*out.iterdir(), out]:
            path.rmdir() if path.is_dir() else path.unlink()
    print(f"{NUM_KILLS} kills within {seconds:.2f} s: {outcomes}")
    assert outcomes["nothing"] > 0


def test_killed_replacements(merges: Merges, sources: list[Path], tmp_path: Path) -> None:
    """With --overwrite the output is there at every moment: the old one or the new one."""
    out = tmp_path / "out"
    commands = [
        ["merge", "uniform", *map(str, pair), "--out", str(out), "--overwrite", *SHARDS]
        for pair in (sources[:2], sources[1:])
    ]
    expected = []
    for arguments in commands:
        seconds = merges.duration(arguments)
        expected.append(Manifest.read(out).outputs)
    current = 1
    moments = random.Random(1)
    for _ in range(NUM_KILLS // 2):
        merges.killed(commands[1 - current], moments.uniform(0, 1.1 * seconds))
        found = Manifest.read(out).outputs
        assert found in expected
        assert_whole(out, found)
        current = expected.index(found)
    assert run_command_line(commands[1 - current]) == 0
    assert_whole(out, expected[1 - current])
    assert not leftovers(out)
