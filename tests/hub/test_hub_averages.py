"""`merge ema` and `merge swa` over the revisions of one repository: checkpoints of a training that was
uploaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hub.conftest import checkpoint, tensors
from hub.server import Hub

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

STEPS = (900, 1000, 1100)


@pytest.fixture
def steps(hub: Hub, tmp_path: Path) -> list[np.ndarray]:
    """org/toy at step900, step1000 and step1100."""
    for step in STEPS:
        hub.add("org/toy", checkpoint(tmp_path / f"s{step}", step), tag=f"step{step}")
    return [tensors(step)["layer.weight"].astype(np.float64) for step in STEPS]


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_an_ema_over_revisions(steps: list[np.ndarray], tmp_path: Path, options: list[str]) -> None:
    arguments = ["merge", "ema", "org/toy@step{900..1100..100}", "--decay", "0.75", "--quiet", *options]
    assert run_command_line([*arguments, "--out", str(tmp_path / "soup")]) == 0
    wanted = 0.75 * (0.75 * steps[0] + 0.25 * steps[1]) + 0.25 * steps[2]
    found = Checkpoint(tmp_path / "soup")["layer.weight"]
    np.testing.assert_array_max_ulp(found, wanted.astype(np.float32), maxulp=1)


def test_revisions_in_any_order_by_their_numbers(steps: list[np.ndarray], tmp_path: Path) -> None:
    refs = ["org/toy@step1100", "org/toy@step900", "org/toy@step1000"]
    arguments = ["merge", "swa", *refs, "--order", "number", "--start", "1", "--quiet"]
    assert run_command_line([*arguments, "--out", str(tmp_path / "soup")]) == 0
    found = Checkpoint(tmp_path / "soup")["layer.weight"]
    np.testing.assert_array_equal(found, ((steps[1] + steps[2]) / 2).astype(np.float32))


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_a_trajectory_of_revisions(steps: list[np.ndarray], tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "soup"
    arguments = [
        "merge",
        "trajectory",
        "org/toy@step{900,1100,1000}",
        "--shape",
        "linear",
        "--quiet",
        *options,
    ]
    assert run_command_line([*arguments, "--out", str(out)]) == 0
    assert Manifest.read(out).notes["steps"] == list(STEPS)
    wanted = 0.25 * steps[0] + 0.5 * steps[1] + 0.25 * steps[2]
    np.testing.assert_array_max_ulp(Checkpoint(out)["layer.weight"], wanted.astype(np.float32), maxulp=1)
