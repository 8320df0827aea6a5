"""What the demo makes of the results of its steps; `.ci/run` runs the steps themselves."""

from __future__ import annotations

import csv
import statistics
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from soupkit.events import Event, Table
from soupkit.jobs.recipes import demo
from soupkit.manifest import Manifest
from soupkit.metrics import metric_of
from soupkit.recipe.run import Demo
from soupkit.recipe.steps import Steps, parse_steps
from soupkit.world import World

NAMES = ("run-000", "run-001", "run-002")


def load(*settings: str) -> Steps:
    text = resources.files("soupkit.recipe").joinpath(demo.RECIPE).read_text(encoding="utf-8")
    return parse_steps(text, settings, where=demo.RECIPE)


def scores(top1: float) -> dict[str, Any]:
    score = {"value": top1, "standard_error": 0.01, "num_examples": 700}
    return {
        split: {"top1": score | {"value": top1 + 0.001 * (split == "held_out")}}
        for split in ("held_out", "test")
    }


def outcome(out: Path, seed: int) -> dict[str, Any]:
    """As run_steps returns it: single models at .90, .91, .92 (+ seed), soups above."""
    members = {f"{out}/sweep/{name}": scores(0.90 + 0.01 * k + 0.001 * seed) for k, name in enumerate(NAMES)}
    soups = {f"{out}/uniform": scores(0.93 + 0.002 * seed), f"{out}/greedy": scores(0.95 - 0.001 * seed)}
    return {
        "uniform": {"recipe": {"out": f"{out}/uniform"}},
        "greedy": {"recipe": {"out": f"{out}/greedy"}, "notes": {"picks": [f"{out}/sweep/run-002"]}},
        "ensemble": {"metrics": {**members, "ensemble of logits": scores(0.94)}},
        "soups": {"metrics": soups},
    }


@pytest.fixture
def fake_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_steps(steps: Any, report: Any, *, force: bool) -> dict[str, Any]:
        out = steps[-1].recipe.out.parent
        out.mkdir(parents=True, exist_ok=True)
        return {"steps": outcome(out, steps[0].recipe.seed)}

    monkeypatch.setattr(demo, "run_steps", run_steps)


def test_one_seed_reports_its_own_standard_errors(fake_steps: None, tmp_path: Path) -> None:
    events: list[Event] = []
    result = demo.demo(Demo(out=tmp_path / "demo"), World(), events.append)
    (table,) = [event for event in events if isinstance(event, Table)]
    assert [row[0] for row in table.rows] == list(demo.COLUMNS)
    assert table.rows[2][3:] == (pytest.approx(95.0), pytest.approx(1.0))
    assert result["metrics"]["best single"]["test"]["top1"]["value"] == pytest.approx(0.92)
    assert Manifest.read(tmp_path / "demo").notes["seeds"] == [0]
    assert (tmp_path / "demo" / "scores.png").stat().st_size > 10_000
    with (tmp_path / "demo" / "scores.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 2 * len(demo.COLUMNS)


def test_several_seeds_report_their_mean_and_its_standard_error(fake_steps: None, tmp_path: Path) -> None:
    result = demo.demo(Demo(out=tmp_path / "demo", seeds=3, seed=5), World(), lambda event: None)
    values = [0.93 + 0.002 * seed for seed in (5, 6, 7)]
    found = result["metrics"]["uniform soup"]["test"]["top1"]
    assert found["value"] == pytest.approx(statistics.mean(values))
    assert found["standard_error"] == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert sorted(path.name for path in (tmp_path / "demo").iterdir() if path.is_dir()) == [
        "seed-5",
        "seed-6",
        "seed-7",
    ]


def test_the_recipe_keeps_selection_and_report_apart() -> None:
    """Few training examples, at least 500 held-out and 700 test, the same split in every step that uses
    digits."""
    steps = {step.name: step.recipe for step in load("seed=3", "num_runs=12").steps}
    digits = [recipe for recipe in steps.values() if getattr(recipe, "data", None) == "digits"]
    assert len(digits) == 5
    assert {(recipe.num_train, recipe.num_held_out, recipe.split_seed) for recipe in digits} == {
        (100, 700, 3)
    }
    assert 1797 - 100 - 700 >= 700
    assert steps["sweep"].num_runs == 12
    assert metric_of(steps["greedy"]) == "top1"


def test_the_data_really_have_these_sizes() -> None:
    from soupkit.task.images.data import open_data

    (recipe,) = [step.recipe for step in load().steps if step.name == "greedy"]
    splits = open_data(recipe)
    assert splits.description["sizes"]["train"] == 100
    assert splits.description["sizes"]["held_out"] >= 500
    assert splits.description["sizes"]["test"] >= 700
