"""kill -9 at random moments, and the same command afterwards: the same bits. SOUPKIT_KILLS=5 kills more often."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from train.population_process import recipe
from train.population_small import ALONE

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.events import silent
from soupkit.jobs.population import train_population

NUM_KILLS = int(os.environ.get("SOUPKIT_KILLS", "1"))
NUM_UPDATES = 15


def contents(out: Path) -> dict[str, str]:
    return {name: content_hash(Checkpoint(out / name)) for name in ("member-000", "member-001", "average", "greedy")}


def last_update(out: Path) -> int:
    """The update of the newest state, whole or under way; −1 without any."""
    names = [path.name.lstrip(".") for path in (out / ".unfinished").glob("*update-*")]
    return max((int(name.partition("-")[2]) for name in names), default=-1)


def start(out: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("population_process.py")
    return subprocess.Popen([sys.executable, str(script), str(out)], env=environment)


def kill_after(process: subprocess.Popen[bytes], out: Path, update: int, delay: float) -> None:
    """kill -9 when the state of `update` appears, and a little later: also while it is being written."""
    end = time.monotonic() + 120
    while last_update(out) < update and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was not killed while it trained"


def test_killed_and_resumed_the_bits_are_the_same(tmp_path: Path) -> None:
    train_population(recipe(tmp_path / "whole"), ALONE, silent)
    out, chance = tmp_path / "killed", random.Random(7)
    for update in sorted(chance.sample(range(1, NUM_UPDATES - 4), NUM_KILLS)):
        kill_after(start(out), out, update, chance.uniform(0, 0.03))
        assert not (out / "soupkit.json").exists()
        assert update - 1 <= last_update(out) < NUM_UPDATES
    assert start(out).wait() == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert not (out / ".unfinished").exists()
