"""Barriers of models whose units were only put in another order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from align.checkpoints import permuted_copy, trained

from soupkit.errors import RecipeError
from soupkit.events import silent
from soupkit.jobs.align.barrier import barrier_job
from soupkit.recipe.align import Barrier
from soupkit.world import World


def recipe(*refs: Path, **values: Any) -> Barrier:
    few = {
        "data": "digits",
        "num_train": 64,
        "num_held_out": 40,
        "num_test": 120,
        "num_points": 5,
        "num_batches": 1,
    }
    return Barrier(refs=tuple(map(str, refs)), **(few | {"device": "cpu", "threads": 1} | values))


def test_the_same_network_in_another_order(tmp_path: Path) -> None:
    """Naive, the line to a permuted copy has a barrier; aligned, every point is the network itself."""
    a = trained(tmp_path / "a")
    b = permuted_copy(a, tmp_path / "b")
    out = tmp_path / "out"
    manifest = barrier_job(recipe(a, b, out=out, repair="bn"), World("cpu", 1), silent)
    points = manifest["notes"]["points"]
    ends = [points[name][place]["nll"] for name in points for place in (0, -1)]
    assert np.ptp(ends) < 1e-5
    naive, aligned = (manifest["notes"]["barriers"][name]["nll"] for name in ("naive", "aligned"))
    assert naive["height"] > 0.5
    assert naive["height"] > 5 * naive["standard_error"]
    assert abs(aligned["height"]) < 1e-5
    assert manifest["metrics"]["aligned"]["test"]["nll_barrier"]["value"] == aligned["height"]
    assert {path.name for path in out.iterdir()} == {
        "barrier.json",
        "barrier.csv",
        "barrier-nll.png",
        "barrier-top1.png",
        "soupkit.json",
    }
    assert json.loads((out / "barrier.json").read_text())["points"] == points
    assert len((out / "barrier.csv").read_text().splitlines()) == 1 + 3 * 5


def test_one_checkpoint_has_no_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected two"):
        barrier_job(recipe(trained(tmp_path / "a")), World("cpu", 1), silent)


@pytest.mark.parametrize(("option", "value"), [("num_points", 2), ("num_batches", 0), ("data", None)])
def test_settings_that_cannot_work(option: str, value: object) -> None:
    with pytest.raises(RecipeError, match=option):
        recipe(Path("a"), Path("b"), **{option: value})
