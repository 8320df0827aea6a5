"""mergekit's files, read by soupkit, give what mergekit 0.1.5 gave for them: to float32's last digits, or as
stated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reference.mergekit_cases import CASES, RESULTS, flat, write_case, write_models

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

# Share of the values that may differ by more than rounding: one more entry kept in a tensor (mergekit rounds
# counts down), k counted over all entries, quartiles by another rank.
DIFFERING = {"ties": 0.02, "sce": 0.002}
TOLERANCE = dict.fromkeys(("slerp", "slerp-gradient", "slerp-slices", "slerp-adapter"), 1e-5)
TOLERANCE |= {"karcher": 2e-5, "karcher-base": 2e-5}


COMMANDS = (
    "merge weighted",
    "merge linear",
    "merge slerp",
    "merge ties",
    "merge task-arithmetic",
    "merge passthrough",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_same_result(name: str, models: Path) -> None:
    out = models / f"out-{name}"
    assert (
        run_command_line(["merge", "mergekit", str(write_case(name, models)), "--out", str(out), "--quiet"])
        == 0
    )
    with np.load(RESULTS) as results:
        expected = results[name]
    result = flat(Checkpoint(out))
    off = ~np.isclose(result, expected, rtol=0, atol=TOLERANCE.get(name, 2e-6))
    assert off.mean() <= DIFFERING.get(name, 0.0), (
        f"{off.sum()} of {off.size}, {np.abs(result - expected).max()}"
    )
    base = flat(Checkpoint(models / "base"))
    config = json.loads((out / "config.json").read_text())
    layers = {int(part) for name in Checkpoint(out) for part in name.split(".") if part.isdigit()}
    assert config["num_hidden_layers"] == len(layers) == max(layers) + 1
    assert result.size != base.size or not np.allclose(result, base, atol=1e-3)


MADE_AGAIN = (
    "linear-filters",
    "ties",
    "passthrough-scaled",
    "linear-adapters",
    "slerp-slices",
    "task-base-adapter",
)


@pytest.mark.parametrize("name", [*MADE_AGAIN, "passthrough-gradients"])
def test_the_manifest_needs_no_mergekit_file(name: str, models: Path, tmp_path: Path) -> None:
    file = write_case(name, models)
    out = tmp_path / "out"
    assert run_command_line(["merge", "mergekit", str(file), "--out", str(out), "--quiet"]) == 0
    file.unlink()
    assert Manifest.read(out).command in COMMANDS
    assert Manifest.read(out).notes["mergekit"]["text"]
    assert run_command_line(["reproduce", str(out), "--out", str(tmp_path / "again"), "--quiet"]) == 0
