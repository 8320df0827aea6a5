"""Runs that diverge or whose worker dies: trained again, and the sweep ends complete. Executors here are
fakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from train.small import contents, litter, sweep_recipe
from train.toy_work import die_once

from soupkit.errors import DivergedError, OutputError, SoupkitError, TaskError, WorkerDiedError
from soupkit.events import Advanced, Event, Started, Warned, silent
from soupkit.jobs.training.sweep import finetune_sweep
from soupkit.manifest import Manifest
from soupkit.train.pool import run_here, run_in_processes
from soupkit.world import World

WORLD = World("cpu")
Faults = dict[str, list[SoupkitError]]


def faulty(faults: Faults, asked: list[tuple[str, float]]) -> Callable[..., None]:
    """An executor in this process in which some attempts fail after half of their training."""

    def execute(work: Any, pieces: Mapping[str, Any], **hear: Any) -> None:
        def attempt(recipe: Any, world: World, report: Any) -> Any:
            asked.append((recipe.out.name, recipe.lr))
            if faults.get(recipe.out.name):
                report(Started("train", 10, "update"))
                report(Advanced("train", 5, "half"))
                raise faults[recipe.out.name].pop(0)
            return work(recipe, world, report)

        run_here(attempt, pieces, **hear)

    return execute


@pytest.fixture(scope="module")
def plain(sweep_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("plain") / "sweep"
    finetune_sweep(sweep_recipe(sweep_base, out, plots=False), WORLD, silent)
    return contents(out)


def test_a_dead_worker_changes_nothing(plain: dict[str, str], sweep_base: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    asked: list[tuple[str, float]] = []
    faults: Faults = {
        "run-001": [WorkerDiedError("gone"), WorkerDiedError("gone")],
        "run-002": [WorkerDiedError("x")],
    }
    recipe = sweep_recipe(sweep_base, tmp_path / "sweep", plots=False)
    result = finetune_sweep(recipe, WORLD, events.append, execute=faulty(faults, asked))
    assert contents(tmp_path / "sweep") == plain
    assert [name for name, _ in asked] == ["run-000", *["run-001"] * 3, *["run-002"] * 2]
    assert "lowered" not in result["notes"]
    assert sum(isinstance(event, Warned) for event in events) == 3
    assert sum(event.by for event in events if isinstance(event, Advanced)) == pytest.approx(3)


def test_a_diverging_run_gets_half_the_learning_rate_and_is_found_again(
    sweep_base: Path, tmp_path: Path
) -> None:
    out, asked = tmp_path / "sweep", list[tuple[str, float]]()
    faults: Faults = {"run-001": [DivergedError("nan"), WorkerDiedError("gone")]}
    recipe = sweep_recipe(sweep_base, out, plots=False, num_runs=2)
    result = finetune_sweep(recipe, WORLD, silent, execute=faulty(faults, asked))
    rates = [lr for name, lr in asked if name == "run-001"]
    assert rates == [rates[0], rates[0] / 2, rates[0] / 2]
    assert Manifest.read(out / "run-001").recipe["lr"] == rates[0] / 2
    assert result["notes"]["hyper_parameters"]["run-001"]["lr"] == rates[0] / 2
    assert result["notes"]["lowered"] == {"run-001": 1}
    rows = json.loads((out / "leaderboard.json").read_text())["rows"]
    assert {row["run"]: row["lr"] for row in rows}["run-001"] == rates[0] / 2
    asked.clear()
    again = finetune_sweep(recipe, WORLD, silent, execute=faulty({}, asked))
    assert asked == []
    assert again["notes"] == result["notes"]


def test_a_learning_rate_that_was_halved_by_hand_is_another_recipe(sweep_base: Path, tmp_path: Path) -> None:
    """Only what the sweep itself lowered passes for the same run."""
    out = tmp_path / "sweep"
    finetune_sweep(sweep_recipe(sweep_base, out, plots=False, num_runs=1, lr="1e-3"), WORLD, silent)
    with pytest.raises(OutputError, match=r"lr was 0\.001, is now 0\.002"):
        finetune_sweep(sweep_recipe(sweep_base, out, plots=False, num_runs=1, lr="2e-3"), WORLD, silent)


def test_what_fails_for_good_is_named_at_the_end_and_the_others_are_done(
    plain: dict[str, str], sweep_base: Path, tmp_path: Path
) -> None:
    out, asked = tmp_path / "sweep", list[tuple[str, float]]()
    faults: Faults = {"run-000": [DivergedError("the loss became nan", hint="slower")] * 3}
    recipe = sweep_recipe(sweep_base, out, plots=False)
    with pytest.raises(DivergedError, match=r"run-000: the loss became nan \(3 attempts") as caught:
        finetune_sweep(recipe, WORLD, silent, execute=faulty(faults, asked))
    assert caught.value.hint == "slower"
    assert contents(out) == {name: plain[name] for name in ("run-001", "run-002")}
    assert Manifest.read(out).notes["members"] == ["run-001", "run-002"]
    assert litter(out) == []
    finetune_sweep(
        recipe, WORLD, silent
    )  # the cause is gone: the same command completes it, from the drawn rate
    assert contents(out) == plain


@pytest.mark.parametrize("error", [TaskError("no data"), OutputError("disk full")])
def test_other_failures_end_the_sweep_at_once(error: SoupkitError, sweep_base: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, float]] = []
    with pytest.raises(type(error), match=f"^run-000: {error.message}$"):
        finetune_sweep(
            sweep_recipe(sweep_base, tmp_path / "sweep", plots=False),
            WORLD,
            silent,
            execute=faulty({"run-000": [error]}, asked),
        )
    assert len(asked) == 1


def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    results: dict[str, Any] = {}
    failed: list[str] = []
    pieces = {name: (str(tmp_path / name), name == "b") for name in "abc"}

    def on_failure(name: str, error: SoupkitError) -> tuple[Any, ...]:
        assert isinstance(error, WorkerDiedError)
        assert "SIGKILL" in error.message
        failed.append(name)
        return pieces[name]

    run_in_processes(
        die_once,
        pieces,
        num_processes=1,
        on_event=lambda *_: None,
        on_result=results.__setitem__,
        on_failure=on_failure,
    )
    assert failed == ["b"]
    assert results == {"a": "done", "b": "done", "c": "done"}


def test_a_piece_may_be_given_up(tmp_path: Path) -> None:
    results: dict[str, Any] = {}

    def work(name: str, _report: Any) -> str:
        if name == "b":
            raise TaskError("no")
        return name

    run_here(
        work,
        {name: (name,) for name in "abc"},
        on_event=lambda *_: None,
        on_result=results.__setitem__,
        on_failure=lambda *_: None,
    )
    assert results == {"a": "a", "c": "c"}
