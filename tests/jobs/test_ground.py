"""Learned soups that leave the ground: steps that diverge, soups worse than uniform, batch norm while
learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.noisy import noisy_models

from soupkit.cli.app import run_command_line
from soupkit.recipe.soup import MergeTwa
from soupkit.stages.learning.search import Outcome, Search

DATA = (
    "--data",
    "digits",
    "--num-train",
    "64",
    "--num-held-out",
    "200",
    "--num-test",
    "50",
    "--threads",
    "1",
)
K = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last one is hopeless."""
    folder = tmp_path_factory.mktemp("models")
    noisy_models(folder, "--threads", "1", "--epochs", "2", noises=(0.05, 1.5))
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert run_command_line([*map(str, words), "--json"]) == code
    captured = capsys.readouterr()
    return json.loads(captured.out) if captured.out else {}, " ".join(captured.err.split())


def test_what_is_worse_than_uniform_is_not_written_unless_forced(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hopeless(search: Search, _recipe: Any) -> Outcome:
        coefficients = np.zeros((K, search.layout.num_blocks))
        coefficients[-1] = 1
        return Outcome(coefficients)

    monkeypatch.setattr("soupkit.jobs.soups.learned._search", hopeless)
    words = ("merge", "learned", models / "m*", *DATA, "--no-plots", "--out")
    soup, told = run(capsys, *words, tmp_path / "kept")
    assert np.array(soup["mixture"]["coefficients"]) == pytest.approx(np.full((K, 2), 1 / K))
    verdict = soup["notes"]["against_uniform"]
    assert verdict["kept_uniform"]
    assert verdict["difference"] < -3 * verdict["standard_error"]
    assert soup["notes"]["learned_coefficients"] == [[0], [0], [1]]
    assert soup["metrics"]["held_out"] == soup["notes"]["uniform"]["held_out"]
    assert "the uniform soup is written instead" in told
    assert "These are the weights of the uniform soup" in (tmp_path / "kept" / "README.md").read_text()
    forced, told = run(capsys, *words, tmp_path / "forced", "--force")
    assert np.array(forced["mixture"]["coefficients"])[:, 0].tolist() == [0, 0, 1]
    assert not forced["notes"]["against_uniform"]["kept_uniform"]
    assert "it is written (--force)" in told
    assert "learned_coefficients" not in forced["notes"]


def test_a_step_that_leaves_the_ground_ends_with_what_to_do(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "merge",
        "twa",
        models / "m*",
        *DATA,
        "--fit",
        "held_out",
        "--bn",
        "refresh",
        "--lr",
        1e5,
        "--no-plots",
    )
    _, told = run(capsys, *words, "--out", tmp_path / "x", code=1)
    assert "the loss" in told
    assert "--lr" in told
    assert list(tmp_path.iterdir()) == []


def test_twa_learns_with_batch_statistics_and_writes_re_estimated_ones(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("merge", "twa", models / "m*", *DATA, "--fit", "held_out", "--epochs", 2, "--no-plots", "--out")
    soup, _ = run(capsys, *words, tmp_path / "soup")
    assert {key: soup["recipe"][key] for key in ("bn", "step", "lr")} == {
        "bn": "batch",
        "step": "block",
        "lr": 0.1,
    }
    assert soup["notes"]["batch_statistics"]
    assert soup["notes"]["dimensions"] == [K]
    assert soup["notes"]["ranks"] == 1
    assert soup["notes"]["memory"]["examples_per_pass"] == 128
    again, _ = run(capsys, "reproduce", tmp_path / "soup", "--out", tmp_path / "again")
    assert again["outputs"]["content"] == soup["outputs"]["content"]
    other, _ = run(capsys, *words, tmp_path / "refresh", "--bn", "refresh")
    assert other["mixture"]["coefficients"] != soup["mixture"]["coefficients"]
    _, told = run(capsys, *words, tmp_path / "cut", "--pass-size", 40, code=2)
    assert "takes the statistics of 128 examples" in told


@pytest.mark.parametrize(
    ("given", "step", "lr"),
    [
        ({}, "block", 0.1),
        ({"lr": 2.0}, "distance", 2.0),
        ({"step": "distance"}, "distance", 2.0),
        ({"step": "block", "lr": 0.3}, "block", 0.3),
    ],
)
def test_a_given_learning_rate_means_what_it_meant(given: dict[str, Any], step: str, lr: float) -> None:
    from soupkit.jobs.soups.twa import with_unit

    recipe = with_unit(MergeTwa(refs=("a",), out=Path("x"), **given))
    assert (recipe.step, recipe.lr) == (step, lr)
