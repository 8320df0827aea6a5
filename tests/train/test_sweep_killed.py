"""What is left of a sweep that is killed or interrupted, and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import fork
from train.small import contents, litter, sweep_recipe, touched
from train.sweep_process import LONG, sweep
from waiting import HANG, alive, wait_for

from soupkit.events import Event, Told, silent
from soupkit.jobs.training.sweep import finetune_sweep
from soupkit.manifest import Manifest
from soupkit.world import World

WORLD = World("cpu")


def under_way(out: Path) -> list[int]:
    """The workers that are training a run: the temporary directory of an output bears its writer's number."""
    return [int(path.name.rpartition("soupkit-")[2].split("-")[0]) for path in out.glob(".run-*.soupkit-*")]


@pytest.fixture(scope="module")
def long_reference(sweep_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The content of every run of a sweep that nothing interrupts."""
    out = tmp_path_factory.mktemp("long") / "sweep"
    finetune_sweep(sweep_recipe(sweep_base, out, **LONG), WORLD, silent)
    return contents(out)


def half_done(out: Path) -> bool:
    """Whether one run is finished and another under way."""
    return bool(list(out.glob("run-*/soupkit.json")) and under_way(out))


@pytest.fixture
def in_terminal(sweep_base: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A sweep with two workers, half done, as a shell starts it: what it starts shares its process group."""
    out = tmp_path / "sweep"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("sweep_process.py")), str(sweep_base), str(out)],
        env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: half_done(out), ended=process.poll)
        yield process, out
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_a_killed_sweep_continues(tmp_path: Path, long_reference: dict[str, str], sweep_base: Path) -> None:
    """kill -9 of the parent alone: its workers end by themselves, and the same command does what is left."""
    out = tmp_path / "sweep"
    child = fork(sweep, sweep_base, out, folder=tmp_path / "process")
    wait_for(lambda: half_done(out), ended=lambda: child.process.exitcode)
    workers = under_way(out)
    child.end()
    wait_for(lambda: not any(alive(pid) for pid in workers))
    before = touched(out)
    assert 0 < len(list(out.glob("run-*"))) < 5
    events: list[Event] = []
    result = finetune_sweep(sweep_recipe(sweep_base, out, **LONG), WORLD, events.append)
    assert any(isinstance(event, Told) and "finished already" in event.message for event in events)
    assert {name: touched(out)[name] for name in before} == before
    assert contents(out) == long_reference
    assert result["notes"]["members"] == sorted(long_reference)
    assert litter(out) == []


@pytest.mark.slow
def test_ctrl_c_ends_workers_and_leaves_no_half_run(
    in_terminal: tuple[subprocess.Popen[str], Path], long_reference: dict[str, str]
) -> None:
    """SIGINT to the whole group, as a terminal sends it."""
    process, out = in_terminal
    workers = under_way(out)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=HANG)
    assert process.returncode == -signal.SIGINT, said
    assert said.count("Traceback") == 1, said
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert not any(alive(pid) for pid in workers)
    assert litter(out) == []
    found = contents(out)
    assert 0 < len(found) < 5
    assert found.items() <= long_reference.items()
    assert set(Manifest.read(out).notes["members"]) <= set(found)
