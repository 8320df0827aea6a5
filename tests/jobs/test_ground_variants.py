"""What else could leave the ground unseen: other learners, starts and losses, and too few examples to learn
from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jobs.test_ground import DATA, models, run

from soupkit.stages.learning.ground import _verdict
from soupkit.task.images.metrics import METRICS
from soupkit.task.score import Predictions

__all__ = ["models"]
FEW = ("--data", "digits", "--num-train", "64", "--num-test", "50", "--threads", "1", "--num-held-out")


@pytest.mark.parametrize(
    "words",
    [
        ("mehl", "--lr", 100, "--epochs", 2),
        ("mehl", "--step", "distance", "--lr", 1e3, "--epochs", 2),
        ("mehl", "--model-batch", 2, "--lr", 30, "--epochs", 2),
        ("learned", "--constraint", "none", "--lr", 10, "--epochs", 2),
        ("twa", "--fit", "held_out", "--blocks", "tensor", "--lr", 1e4),
        ("twa", "--fit", "held_out", "--folds", 2, "--bn", "refresh", "--lr", 1e4),
    ],
    ids=lambda words: "-".join(map(str, words)),
)
def test_every_learner_stops_where_the_loss_explodes(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[Any, ...]
) -> None:
    method, *options = words
    _, told = run(
        capsys, "merge", method, models / "m*", *DATA, *options, "--no-plots", "--out", tmp_path / "x", code=1
    )
    assert "the loss" in told
    assert "--lr" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [("--start", -1), ("--weight-decay", 100)])
def test_a_start_or_a_decay_that_ruins_it_ends_in_the_uniform_soup(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[Any, ...]
) -> None:
    """No loss explodes: the point is a bad one all along, or sinks slowly."""
    words = ("merge", "twa", models / "m*", *DATA, "--epochs", 1, "--no-plots", "--out", tmp_path / "x")
    soup, told = run(capsys, *words, *options)
    assert soup["notes"]["against_uniform"]["kept_uniform"]
    assert np.array(soup["mixture"]["coefficients"]) == pytest.approx(np.full((3, 2), 1 / 3))
    assert "the uniform soup is written instead" in told


@pytest.mark.parametrize(
    ("num", "options"),
    [
        (1, ("twa", "--fit", "held_out")),
        (2, ("twa", "--fit", "held_out", "--folds", 2)),
        (1, ("mehl", "--bn", "batch")),
        (1, ("learned", "--bn", "batch")),
        (1, ("learned", "--folds", 2)),
        (1, ("mehl", "--folds", 3)),
    ],
)
def test_too_few_examples_are_refused_before_the_work(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], num: int, options: tuple[Any, ...]
) -> None:
    words = ("merge", options[0], models / "m*", *FEW, num, *options[1:], "--no-plots")
    _, told = run(capsys, *words, "--out", tmp_path / "x", code=2)
    assert f"of {num} examples, expected at least" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metric", ["top1", "nll", "ece"])
def test_outputs_that_are_not_numbers_are_worse_by_every_metric(metric: str) -> None:
    targets = np.arange(60) % 3
    outputs = np.eye(3, dtype=np.float32)[targets]
    found, uniform = (Predictions(np.float32(factor) * outputs, targets) for factor in (np.nan, 1))
    task = SimpleNamespace(metrics=METRICS, held_out=targets)
    search: Any = SimpleNamespace(soup=SimpleNamespace(task=task), recipe=SimpleNamespace(metric=metric))
    assert _verdict(search, found, uniform)["clearly_worse"]
