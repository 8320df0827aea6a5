"""`run`: what is done again, what is skipped, and what is expected. Two fake commands stand for all."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import open_checkpoint, open_references
from soupkit.checkpoint.tensors import write_tensors
from soupkit.commands import COMMANDS, Command
from soupkit.errors import ExpectationError, OutputError, TaskError
from soupkit.events import Event, Report, Table, Told, silent
from soupkit.jobs.recipes.run import run
from soupkit.manifest import Manifest
from soupkit.recipe.fields import option
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.run import Run
from soupkit.recipe.shared import OutputOptions
from soupkit.recipe.steps import Step
from soupkit.recipe.train import FinetuneSweep
from soupkit.stages.steps import Decision, decide
from soupkit.world import World

FILE = """
variables: {out: OUT}
steps:
  base: {command: fake make, value: 1, out: "${out}/base"}
  other: {command: fake make, value: 5, out: "${out}/other"}
  soup:
    command: fake sum
    refs: ["${out}/base", "${out}/[n-p]ther"]
    out: ${out}/soup
    expect: [test.sum.value == 6]
"""


@dataclass(frozen=True, kw_only=True)
class Make(OutputOptions):
    """Write a checkpoint with one number."""

    value: float = option(0.0, help="the number")


@dataclass(frozen=True, kw_only=True)
class Sum(OutputOptions):
    """Add checkpoints."""

    refs: tuple[str, ...] = option(help="checkpoints")
    top: int | None = option(None, help="only the first")


ran: list[str] = []


def make(recipe: Make, _world: World, _report: Report) -> dict[str, Any]:
    if recipe.value < 0:
        raise TaskError("negative", hint="be positive")
    return write(recipe, "fake make", recipe.value, [])


def add(recipe: Sum, _world: World, _report: Report) -> dict[str, Any]:
    checkpoints = open_references(recipe.refs)[: recipe.top]
    inputs = [{"reference": found.reference, "content": content_hash(found)} for found in checkpoints]
    return write(recipe, "fake sum", float(sum(np.sum(found["w"]) for found in checkpoints)), inputs)


def write(recipe: Any, command: str, value: float, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    ran.append(recipe.out.name)
    with OutputDirectory(recipe.out, overwrite=recipe.overwrite) as directory:
        write_tensors(directory, {"w": np.array([value], np.float32)})
        manifest = Manifest(
            command=command,
            recipe=recipe_to_json(recipe),
            inputs=inputs,
            outputs={
                "files": {"model.safetensors": {"bytes": (directory / "model.safetensors").stat().st_size}}
            },
            metrics={"test": {"sum": {"value": value}}},
        )
        manifest.write(directory)
    return manifest.to_json()


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run the file with settings; the names of the outputs that were made."""
    monkeypatch.setitem(COMMANDS, "fake make", Command(f"{__name__}:Make", f"{__name__}:make"))
    monkeypatch.setitem(COMMANDS, "fake sum", Command(f"{__name__}:Sum", f"{__name__}:add"))
    file = tmp_path / "fake.yaml"
    file.write_text(FILE.replace("OUT", str(tmp_path / "runs")))

    def go(*settings: str, report: Report = silent, **options: bool) -> list[str]:
        ran.clear()
        run(Run(file=file, set=settings, **options), World(), report)
        return ran.copy()

    return go


def value_of(path: Path) -> float:
    return float(np.sum(open_checkpoint(str(path))["w"]))


def test_a_second_run_does_nothing_and_returns_the_same(go: Callable[..., list[str]], tmp_path: Path) -> None:
    assert go() == ["base", "other", "soup"]
    assert value_of(tmp_path / "runs/soup") == 6
    assert go() == []
    recipe = Run(file=tmp_path / "fake.yaml")
    results = run(recipe, World(), silent)["steps"]
    assert list(results) == ["base", "other", "soup"]
    assert results["soup"]["metrics"]["test"]["sum"]["value"] == 6


def test_a_changed_option_runs_its_step_and_what_reads_it(
    go: Callable[..., list[str]], tmp_path: Path
) -> None:
    go()
    with pytest.raises(ExpectationError):
        go("other.value=7")
    assert ran == ["other", "soup"]
    assert value_of(tmp_path / "runs/soup") == 8
    with pytest.raises(ExpectationError):
        go("other.value=7")
    assert ran == []


def test_a_rebuilt_input_counts_even_with_the_same_weights(
    go: Callable[..., list[str]], tmp_path: Path
) -> None:
    go()
    (tmp_path / "runs/base/soupkit.json").unlink()
    (tmp_path / "runs/base/model.safetensors").unlink()
    assert go() == ["base", "soup"]


def test_weights_changed_behind_its_back(go: Callable[..., list[str]], tmp_path: Path) -> None:
    go()
    (tmp_path / "runs/other/model.safetensors").unlink()
    write_tensors(tmp_path / "runs/other", {"w": np.array([6], np.float32)})
    with pytest.raises(ExpectationError):
        go()
    assert ran == ["soup"]


def test_a_new_match_of_a_glob_counts(go: Callable[..., list[str]], tmp_path: Path) -> None:
    go()
    make(Make(value=2, out=tmp_path / "runs/pther"), World(), silent)
    with pytest.raises(ExpectationError):
        go()
    assert ran == ["soup"]
    assert value_of(tmp_path / "runs/soup") == 8


def test_with_top_only_newer_matches_count(go: Callable[..., list[str]], tmp_path: Path) -> None:
    setting = 'soup.expect=["test.sum.value == 1"]'
    go("soup.top=1", setting)
    assert go("soup.top=1", setting) == []  # `other` was left out on purpose
    path = tmp_path / "runs/other/soupkit.json"
    newer = Manifest.read(path.parent).to_json() | {"created": "2999-01-01T00:00:00+00:00"}
    Manifest(**newer).write(path.parent)
    assert go("soup.top=1", setting) == ["soup"]


def test_a_damaged_output_is_made_again(go: Callable[..., list[str]], tmp_path: Path) -> None:
    go()
    with (tmp_path / "runs/soup/model.safetensors").open("ab") as file:
        file.truncate(10)
    assert go() == ["soup"]
    assert value_of(tmp_path / "runs/soup") == 6


def test_force_runs_everything(go: Callable[..., list[str]], tmp_path: Path) -> None:
    go()
    assert Manifest.read(tmp_path / "runs/base").recipe["overwrite"] is False
    assert go(force=True) == ["base", "other", "soup"]
    assert Manifest.read(tmp_path / "runs/base").recipe["overwrite"] is True
    assert go() == []  # overwriting is no change of the recipe


def test_a_foreign_directory_is_not_replaced(go: Callable[..., list[str]], tmp_path: Path) -> None:
    precious = tmp_path / "runs/soup/thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    for force in (False, True):
        with pytest.raises(OutputError, match="step soup: "):
            go(force=force)
    assert precious.read_text() == "years of work"


def test_dry_run_says_what_would_run_and_runs_nothing(go: Callable[..., list[str]], tmp_path: Path) -> None:
    go()
    events: list[Event] = []
    assert go("base.value=2", report=events.append, dry_run=True) == []
    (table,) = [event for event in events if isinstance(event, Table)]
    assert [row[:3] for row in table.rows] == [
        ("base", "fake make", "run"),
        ("other", "fake make", "skip"),
        ("soup", "fake sum", "run"),
    ]
    assert [row[3] for row in table.rows] == [
        "value changed",
        "complete and unchanged",
        f"{tmp_path / 'runs/base'} is new",
    ]
    assert value_of(tmp_path / "runs/base") == 1


def test_an_unmet_expectation_names_it_and_what_was_seen(go: Callable[..., list[str]]) -> None:
    events: list[Event] = []
    expect = (
        'soup.expect=["test.sum.value == 6", "test.sum > base:test.sum + 5", "test.sum < other:test.sum"]'
    )
    with pytest.raises(ExpectationError) as caught:
        go(expect, report=events.append)
    assert caught.value.exit_code == 3
    assert caught.value.message.splitlines() == [
        "step soup: expected test.sum > base:test.sum + 5, but test.sum is 6, base:test.sum is 1",
        "step soup: expected test.sum < other:test.sum, but test.sum is 6, other:test.sum is 5",
    ]
    assert Told("expected of soup: test.sum.value == 6: met") in events


def test_an_error_names_its_step_and_keeps_its_kind(go: Callable[..., list[str]]) -> None:
    with pytest.raises(TaskError) as caught:
        go("other.value=-1")
    assert (caught.value.message, caught.value.hint) == ("step other: negative", "be positive")
    assert ran == ["base"]


def test_a_killed_sweep_and_a_sweep_without_a_member_are_no_complete_ones(tmp_path: Path) -> None:
    recipe = FinetuneSweep(base="base", out=tmp_path, num_runs=3)
    step = Step("sweep", "finetune-sweep", recipe)
    for name in ("run-000", "run-001", "run-002"):
        (tmp_path / name).mkdir()

    def members(*names: str) -> None:
        Manifest(
            command="finetune-sweep", recipe=recipe_to_json(recipe), notes={"members": list(names)}
        ).write(tmp_path)

    members("run-000", "run-001")
    assert decide(step, []) == Decision(True, "2 of 3 runs are finished")
    members("run-000", "run-001", "run-002")
    assert decide(step, []) == Decision(False, "complete and unchanged")
    (tmp_path / "run-001").rmdir()
    assert decide(step, []) == Decision(True, "run-001 is missing")
