"""kill -9 while states are written, and the same command afterwards: the same bits. SOUPKIT_KILLS=5: more
often."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from pathlib import Path

import pytest
from forked import fork
from train.population_process import recipe, train_until
from train.population_small import ALONE

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.events import silent
from soupkit.jobs.training.population import train_population

NUM_KILLS = int(os.environ.get("SOUPKIT_KILLS", "1"))
NUM_UPDATES = 15
SYNCS = 5
"""fsyncs for one state: two members, what they share, the folder, and its folder once it has its name."""


def contents(out: Path) -> dict[str, str]:
    return {
        name: content_hash(Checkpoint(out / name))
        for name in ("member-000", "member-001", "average", "greedy")
    }


def last_update(out: Path) -> int:
    """The update of the newest state, whole or under way; −1 without any."""
    names = [path.name.lstrip(".") for path in (out / ".unfinished").glob("*update-*")]
    return max((int(name.partition("-")[2]) for name in names), default=-1)


def run(out: Path, *, fatal: int) -> int:
    """Train on, and kill -9 in the fsync of that number: while a state is written, or just before it is
    named."""
    return fork(train_until, out, fatal, folder=Path(tempfile.mkdtemp(dir=out.parent)) / "process").wait()


@pytest.mark.slow
def test_killed_and_resumed_the_bits_are_the_same(tmp_path: Path) -> None:
    train_population(recipe(tmp_path / "whole"), ALONE, silent)
    out, chance = tmp_path / "killed", random.Random(7)
    for _ in range(NUM_KILLS):
        before = last_update(out)
        assert run(out, fatal=chance.randrange(SYNCS + 1, 2 * SYNCS + 1)) == -signal.SIGKILL
        assert not (out / "soupkit.json").exists()
        assert before < last_update(out) < NUM_UPDATES
    assert run(out, fatal=0) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert not (out / ".unfinished").exists()
