"""`kill -9` at random moments of a merge with sharded output: a whole output or none, and the next run succeeds.

SOUPKIT_KILLS=200 pytest tests/faults/test_kill_merge.py
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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
# The interpreter's start is the same for every run: the clock begins when the merge does.
RUN = """
import sys
from soupkit.cli.app import main
import soupkit.jobs.merge
print("go", flush=True)
main(sys.argv[1:])
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


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """A merge in a process of its own, with its modules loaded."""
    process = subprocess.Popen([sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "go\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    code = process.wait()
    assert process.stdout
    process.stdout.close()
    return code


def duration(arguments: Sequence[str]) -> float:
    """Seconds of one merge that nobody disturbs, its imports apart."""
    process = start(arguments)
    begin = time.perf_counter()
    assert end(process) == 0
    return time.perf_counter() - begin


def assert_whole(out: Path, expected: dict[str, Any]) -> None:
    """Files, headers, every byte of the weights, and the manifest."""
    manifest = Manifest.read(out)
    assert manifest.outputs == expected
    assert set(manifest.outputs["files"]) | {"soupkit.json", "README.md"} == {path.name for path in out.iterdir()}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 10
    assert content_hash(open_checkpoint(str(out)), threads=1) == expected["content"]


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]


def test_killed_merges(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["merge", "uniform", *map(str, sources), "--out", str(out), *SHARDS]
    reference = ["merge", "uniform", *map(str, sources), "--out", str(tmp_path / "reference"), *SHARDS]
    seconds = duration(reference)
    expected = Manifest.read(tmp_path / "reference").outputs
    moments = random.Random(0)
    outcomes = {"nothing": 0, "whole": 0, "litter": 0}
    for _ in range(NUM_KILLS):
        process = start(arguments)
        time.sleep(moments.uniform(0, 1.1 * seconds))
        process.send_signal(signal.SIGKILL)
        end(process)
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


def test_killed_replacements(sources: list[Path], tmp_path: Path) -> None:
    """With --overwrite the output is there at every moment: the old one or the new one."""
    out = tmp_path / "out"
    merges = [
        ["merge", "uniform", *map(str, pair), "--out", str(out), "--overwrite", *SHARDS]
        for pair in (sources[:2], sources[1:])
    ]
    expected = []
    for arguments in merges:
        seconds = duration(arguments)
        expected.append(Manifest.read(out).outputs)
    current = 1
    moments = random.Random(1)
    for _ in range(NUM_KILLS // 2):
        process = start(merges[1 - current])
        time.sleep(moments.uniform(0, 1.1 * seconds))
        process.send_signal(signal.SIGKILL)
        end(process)
        found = Manifest.read(out).outputs
        assert found in expected
        assert_whole(out, found)
        current = expected.index(found)
    assert run_command_line(merges[1 - current]) == 0
    assert_whole(out, expected[1 - current])
    assert not leftovers(out)
