"""Barriers of curves that are known, and of models whose units were only put in another order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from align.checkpoints import permuted_copy, trained
from scipy.special import log_softmax

from soupkit.align.barrier import barrier, between, losses_and_errors
from soupkit.errors import RecipeError
from soupkit.events import silent
from soupkit.jobs.align.barrier import barrier_job
from soupkit.recipe.align import Barrier
from soupkit.task.score import Predictions
from soupkit.world import World


def recipe(*refs: Path, **values: Any) -> Barrier:
    few = {"data": "digits", "num_train": 64, "num_held_out": 40, "num_test": 120, "num_points": 5, "num_batches": 1}
    return Barrier(refs=tuple(map(str, refs)), **(few | {"device": "cpu", "threads": 1} | values))


def test_the_barrier_of_a_parabola() -> None:
    """L(λ) = λ (1 − λ) + λ: the straight part is no barrier, the rest is highest in the middle."""
    at = np.linspace(0, 1, 5)
    values = np.repeat((at * (1 - at) + at)[:, None], 7, axis=1)
    found = barrier(values, at.tolist())
    assert found.height == pytest.approx(0.25)
    assert (found.at, found.standard_error, found.num_examples) == (0.5, pytest.approx(0.0, abs=1e-12), 7)


def test_a_valley_is_no_barrier() -> None:
    values = np.array([[1.0, 1.0], [0.2, 0.0], [1.0, 1.0]])
    assert barrier(values, [0, 0.5, 1]).height == 0.0


def test_its_standard_error_is_of_paired_differences() -> None:
    random = np.random.default_rng(0)
    values = random.exponential(size=(3, 50)) + np.array([0, 3, 0])[:, None]
    differences = values[1] - 0.5 * (values[0] + values[2])
    found = barrier(values, [0, 0.5, 1])
    assert found.height == pytest.approx(differences.mean())
    assert found.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(50))


def test_losses_and_errors() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]], np.float32)
    losses, errors = losses_and_errors(Predictions(logits, np.array([0, 0, 1])))
    assert errors.tolist() == [0, 1, 1]
    assert np.allclose(losses, -log_softmax(logits.astype(np.float64), 1)[np.arange(3), [0, 0, 1]])


def test_a_point_between() -> None:
    a = {"w": np.array([0.0, 2.0], np.float32), "n": np.array(3)}
    b = {"w": np.array([1.0, 0.0], np.float32), "n": np.array(9)}
    mixed = between(a, b, 0.25)
    assert mixed["w"].tolist() == [0.25, 1.5]
    assert mixed["w"].dtype == np.float32
    assert mixed["n"] == 3


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


def test_a_barrier_of_errors_that_no_example_shows_has_an_error() -> None:
    right = barrier(np.zeros((3, 40)), (0.0, 0.5, 1.0), shares=True)
    assert (right.height, right.standard_error) == (0.0, pytest.approx(1 / 82))
