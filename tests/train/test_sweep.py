"""A sweep: the same whoever trains it, continued and not repeated, and never half a run."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any

import pytest
from train.small import contents, finetune_recipe, litter, sweep_recipe, touched

from soupkit.checkpoint.reference import open_references
from soupkit.errors import CheckpointError, OutputError, RecipeError, TaskError
from soupkit.events import Advanced, Event, Scored, Started, Table, Told, Warned, silent
from soupkit.jobs.training.finetune import finetune
from soupkit.jobs.training.sweep import finetune_sweep
from soupkit.manifest import Manifest
from soupkit.train.sweep import LOCK_NAME, plan_runs
from soupkit.world import World

WORLD = World("cpu")
MEMBERS = ["run-000", "run-001", "run-002"]


@pytest.fixture(scope="module")
def reference(
    sweep_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event], dict[str, Any]]:
    """A sweep of three runs, trained in this process: the directory, the events, the result."""
    out, events = tmp_path_factory.mktemp("reference") / "sweep", []
    result = finetune_sweep(sweep_recipe(sweep_base, out), WORLD, events.append)
    return out, events, result


def test_a_sweep_is_what_its_manifest_says(
    reference: tuple[Path, list[Event], dict[str, Any]], sweep_base: Path
) -> None:
    out, events, result = reference
    manifest = Manifest.read(out)
    assert manifest.to_json() == result
    assert manifest.command == "finetune-sweep"
    assert manifest.notes["members"] == MEMBERS
    assert [Path(each.reference).name for each in open_references([str(out)])] == MEMBERS
    assert len(set(contents(out).values())) == 3
    [entry] = manifest.inputs
    assert (out / entry["path"]).resolve() == sweep_base.resolve()
    for name in MEMBERS:
        run = Manifest.read(out / name)
        assert run.command == "finetune"
        assert manifest.metrics[name] == run.metrics
        assert manifest.notes["hyper_parameters"][name] == run.notes["hyper_parameters"]
        assert run.outputs["content"] == contents(out)[name]
    assert litter(out) == []
    assert Started("sweep", 3, "run") in events
    assert sum(event.by for event in events if isinstance(event, Advanced)) == pytest.approx(3)
    assert {event.name for event in events if isinstance(event, Scored)} == set(MEMBERS)


def test_the_leaderboard_is_sorted_by_held_out(reference: tuple[Path, list[Event], dict[str, Any]]) -> None:
    out, events, _ = reference
    [table] = [event for event in events if isinstance(event, Table)]
    assert table.columns[:4] == ("run", "held-out top-1", "±", "test top-1")
    assert set(table.columns[4:]) >= {"lr", "weight_decay"}
    scores = {name: Manifest.read(out / name).metrics["held_out"]["top1"]["value"] for name in MEMBERS}
    assert [row[0] for row in table.rows] == sorted(MEMBERS, key=lambda name: -scores[name])
    assert [row[1] for row in table.rows] == [round(scores[str(row[0])], 4) for row in table.rows]


def test_runs_equal_the_finetune_command(
    reference: tuple[Path, list[Event], dict[str, Any]], sweep_base: Path, tmp_path: Path
) -> None:
    settings = Manifest.read(reference[0] / "run-001").notes["hyper_parameters"]
    values = {
        name: getattr(sweep_recipe(sweep_base, tmp_path), name)
        for name in ("num_train", "num_held_out", "num_test")
    }
    recipe = finetune_recipe(out=tmp_path / "alone", base=str(sweep_base), model=None, **values, **settings)
    assert (
        finetune(recipe, World("cpu", threads=1), silent)["outputs"]["content"]
        == contents(reference[0])["run-001"]
    )


def test_processes_make_the_same_bits_and_a_second_call_does_nothing(
    reference: tuple[Path, list[Event], dict[str, Any]], sweep_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    events: list[Event] = []
    result = finetune_sweep(sweep_recipe(sweep_base, out, jobs=2), WORLD, events.append)
    assert contents(out) == contents(reference[0])
    assert result["metrics"] == reference[2]["metrics"]
    assert sum(event.by for event in events if isinstance(event, Advanced)) == pytest.approx(3)
    before, events = touched(out), []
    finetune_sweep(sweep_recipe(sweep_base, out, jobs=2), WORLD, events.append)
    assert touched(out) == before
    assert Told("3 of 3 runs are finished already") in events
    assert not [event for event in events if isinstance(event, Started | Advanced)]


def test_a_sweep_grows_and_its_members_stay(
    reference: tuple[Path, list[Event], dict[str, Any]], sweep_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    finetune_sweep(sweep_recipe(sweep_base, out, num_runs=2), WORLD, silent)
    before = touched(out)
    finetune_sweep(sweep_recipe(sweep_base, out, num_runs=3), WORLD, silent)
    assert {name: touched(out)[name] for name in before} == before
    assert contents(out) == contents(reference[0])
    assert Manifest.read(out).notes["members"] == MEMBERS


def test_a_changed_recipe_is_refused_or_trained_again_where_it_differs(
    sweep_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    finetune_sweep(sweep_recipe(sweep_base, out, num_runs=2, mixup="0"), WORLD, silent)
    before, manifest = touched(out), (out / "soupkit.json").read_text()
    with pytest.raises(
        OutputError, match=r"run-000 was trained with another recipe: mixup was 0.0, is now 0.5"
    ):
        finetune_sweep(sweep_recipe(sweep_base, out, num_runs=2, mixup="0.5"), WORLD, silent)
    assert touched(out) == before
    assert (out / "soupkit.json").read_text() == manifest
    partly = sweep_recipe(
        sweep_base, out, num_runs=2, mixup="0", run_seed="0", overwrite=True
    )  # run 0 had this seed
    finetune_sweep(partly, WORLD, silent)
    after = touched(out)
    assert {path for path in after if after[path] != before[path]} == {
        path for path in after if "run-001" in path
    }


def test_another_base_is_refused(sweep_base: Path, tmp_path: Path) -> None:
    finetune_sweep(sweep_recipe(sweep_base, tmp_path / "sweep", num_runs=1), WORLD, silent)
    other = tmp_path / "other"
    recipe = finetune_recipe(
        out=other, base=str(sweep_base), model=None, num_train=64, epochs=1, device="cpu"
    )
    finetune(recipe, World("cpu", threads=1), silent)
    with pytest.raises(OutputError, match="weights of the base are others"):
        finetune_sweep(sweep_recipe(other, tmp_path / "sweep", num_runs=1), WORLD, silent)


def test_a_run_without_weights_is_no_run(sweep_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    finetune_sweep(sweep_recipe(sweep_base, out, num_runs=1), WORLD, silent)
    weights = out / "run-000" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="run-000"):
        finetune_sweep(sweep_recipe(sweep_base, out, num_runs=1), WORLD, silent)
    finetune_sweep(sweep_recipe(sweep_base, out, num_runs=1, overwrite=True), WORLD, silent)
    assert len(contents(out)) == 1
    (out / "run-000" / "soupkit.json").unlink()
    with pytest.raises(OutputError, match=r"run-000: exists and has no soupkit\.json"):
        finetune_sweep(sweep_recipe(sweep_base, out, num_runs=1), WORLD, silent)


def test_directories_that_are_no_sweep_are_left_alone(sweep_base: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds the output of soupkit finetune"):
        finetune_sweep(sweep_recipe(sweep_base, sweep_base), WORLD, silent)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is no sweep"):
        finetune_sweep(sweep_recipe(sweep_base, tmp_path / "photos", overwrite=True), WORLD, silent)
    with pytest.raises(OutputError, match="not a directory"):
        finetune_sweep(sweep_recipe(sweep_base, tmp_path / "file"), WORLD, silent)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_two_sweeps_do_not_share_a_directory(sweep_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    out.mkdir()
    with (out / LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another sweep is running"):
            finetune_sweep(sweep_recipe(sweep_base, out), WORLD, silent)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr": "log(0,1)"}, "lr is 'log"),
        ({"lr": "1e-3", "min_lr": 1e-2}, "run-000: lr is 0.001"),
        ({"label_smoothing": "choice(0,1)"}, "label_smoothing is 1"),
        ({"optimizer": "adamz"}, "adamz"),
        ({"batch_size": 97}, "batch_size is 97"),
        ({"draw": "grid"}, "lr is a range"),
        ({"rand_augment_magnitude": "30"}, "rand_augment_magnitude"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_bad_settings_are_refused_before_any_training(
    sweep_base: Path, tmp_path: Path, values: dict[str, Any], words: str, dry_run: bool
) -> None:
    events: list[Event] = []
    with pytest.raises(RecipeError, match=words):
        finetune_sweep(
            sweep_recipe(sweep_base, tmp_path / "sweep", dry_run=dry_run, **values), WORLD, events.append
        )
    assert not [event for event in events if isinstance(event, Started | Advanced)]
    assert not list(tmp_path.glob("sweep/run-*"))


def test_dry_run_shows_the_draws_and_writes_nothing(sweep_base: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    recipe = sweep_recipe(sweep_base, tmp_path / "sweep", dry_run=True)
    result = finetune_sweep(recipe, WORLD, events.append)
    [table] = [event for event in events if isinstance(event, Table)]
    assert [row[0] for row in table.rows] == MEMBERS
    assert result["plan"] == {run.name: run.settings for run in plan_runs(recipe)}
    assert list(tmp_path.iterdir()) == []


def test_a_grid_that_is_cut_off_is_mentioned(sweep_base: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    values = {
        "draw": "grid",
        "lr": "choice(1e-3,1e-2)",
        "weight_decay": "choice(0,0.1)",
        "label_smoothing": "0",
    }
    recipe = sweep_recipe(sweep_base, tmp_path / "sweep", dry_run=True, **values)
    finetune_sweep(recipe, WORLD, events.append)
    assert next(event.message for event in events if isinstance(event, Warned)).startswith(
        "the grid has 8 points"
    )


def test_a_diverging_run_is_named_and_finished_runs_stay(sweep_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    values = {
        "draw": "grid",
        "lr": "choice(1e-3,1e30)",
        "optimizer": "sgd",
        "warmup_epochs": 0.0,
        "epochs": "3",
    }
    values |= {"weight_decay": "0", "label_smoothing": "0", "mixup": "0"}
    with pytest.raises(TaskError, match=r"run-001: the training loss became (nan|inf) in epoch \d of 3"):
        finetune_sweep(sweep_recipe(sweep_base, out, **values), WORLD, silent)
    assert Manifest.read(out).notes["members"] == [path.name for path in out.glob("run-*")] == ["run-000"]
    assert litter(out) == []


def test_other_data_are_refused_and_no_resume_trains_again(
    reference: tuple[Path, list[Event], dict[str, Any]],
    sweep_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "sweep"
    shutil.copytree(reference[0], out)
    with monkeypatch.context() as patched:
        patched.setattr("soupkit.jobs.training.sweep.given_by", lambda _recipe: {"data": "other files"})
        with pytest.raises(OutputError, match="the files of the data are others"):
            finetune_sweep(sweep_recipe(sweep_base, out), WORLD, silent)
    before = touched(out)
    finetune_sweep(sweep_recipe(sweep_base, out, overwrite=True, resume=False), WORLD, silent)
    after = touched(out)
    assert all(after[path] != before[path] for path in before if "run-" in path)
    assert contents(out) == contents(reference[0])
