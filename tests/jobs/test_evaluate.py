"""`evaluate` reports what the task room computes, for every row, and writes it down."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task.small import recipe as small_recipe
from task.small import saved

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import OutputError, RecipeError, SoupkitError, TaskError
from soupkit.events import Event, Finished, Started, Table, Warned
from soupkit.jobs.judge.evaluate import evaluate
from soupkit.manifest import Manifest
from soupkit.recipe.evaluate import Evaluate
from soupkit.task.images.metrics import METRICS, all_scores, ensemble
from soupkit.task.images.task import open_task
from soupkit.task.score import compare, scores_to_json
from soupkit.world import World

WORLD = World("cpu", 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints: two of one architecture, one of another."""
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        saved(root / f"resnet-{seed}", "timm:test_resnet,num_classes=10,img_size=32", seed=seed)
    saved(root / "vit", "timm:test_vit,num_classes=10,img_size=32")
    return root


def recipe(*refs: Path, **values: Any) -> Evaluate:
    return replace(small_recipe(**values), refs=tuple(map(str, refs)))


def run(recipe: Evaluate) -> tuple[dict[str, Any], list[Event]]:
    events: list[Event] = []
    return evaluate(recipe, WORLD, events.append), events


def predictions(directory: Path, split: str) -> Any:
    task = open_task(Checkpoint(directory), small_recipe(), WORLD)
    return task.predict(getattr(task, split))


def test_every_row_is_what_the_task_computes(models: Path) -> None:
    names = ["resnet-0", "resnet-1", "vit"]
    result, events = run(recipe(*(models / name for name in names), ensemble="softmax"))
    for split in ("held_out", "test"):
        alone = [predictions(models / name, split) for name in names]
        rows = [*names, None]
        for name, expected in zip(rows, [*alone, ensemble(alone, "softmax")], strict=True):
            key = str(models / name) if name else "ensemble of softmax"
            assert result["metrics"][key][split] == scores_to_json(all_scores(expected))
            if name != "resnet-0":
                comparison = compare(expected, alone[0], METRICS["top1"]).to_json()
                assert result["notes"]["comparisons"][split][key] == comparison
        assert str(models / "resnet-0") not in result["notes"]["comparisons"][split]
    tables = [event for event in events if isinstance(event, Table)]
    assert [table.title for table in tables] == ["held-out, n = 150", "test, n = 100"]
    assert [row[0] for row in tables[0].rows] == [
        *(str(models / name) for name in names),
        "ensemble of softmax",
    ]
    assert {type(event) for event in events} >= {Started, Finished}


def test_one_checkpoint_has_the_layout_of_manifests(models: Path) -> None:
    result, _ = run(recipe(models / "vit", split="test"))
    assert result["metrics"] == {"test": scores_to_json(all_scores(predictions(models / "vit", "test")))}
    assert result["notes"]["comparisons"] == {"test": {}}


@pytest.mark.parametrize("metric", ["top1", "nll"])
def test_the_baseline_may_be_among_the_rows_or_beside_them(models: Path, metric: str) -> None:
    first, second, other = models / "resnet-0", models / "resnet-1", models / "vit"
    among, _ = run(recipe(first, second, baseline=str(second), metric=metric))
    assert among["notes"]["baseline"] == str(second)
    expected = compare(predictions(first, "test"), predictions(second, "test"), METRICS[metric]).to_json()
    assert among["notes"]["comparisons"]["test"] == {str(first): expected}
    beside, events = run(recipe(first, baseline=str(other), metric=metric))
    assert set(beside["notes"]["comparisons"]["test"]) == {str(first)}
    table = next(event for event in events if isinstance(event, Table))
    assert [row[0] for row in table.rows] == [str(other), str(first)]


def test_what_is_written(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    wanted = recipe(models / "resnet-0", models / "vit", out=out)
    result, _ = run(wanted)
    manifest = Manifest.read(out)
    assert manifest.to_json() == result
    assert manifest.command == "evaluate"
    assert [entry["reference"] for entry in manifest.inputs] == [
        str(models / "resnet-0"),
        str(models / "vit"),
    ]
    assert all(entry["content"].startswith("xxh3-128:") for entry in manifest.inputs)
    assert set(manifest.outputs["files"]) == {"scores.json", "scores.csv"}
    assert json.loads((out / "scores.json").read_text())["metrics"] == result["metrics"]
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        node = result["metrics"][row["checkpoint"]][row["split"]][row["metric"]]
        assert float(row["value"]) == node["value"]
        assert bool(row["p_value"]) == (row["metric"] == "top1" and row["checkpoint"].endswith("vit"))
    with pytest.raises(OutputError, match="scores"):
        run(wanted)
    run(replace(wanted, overwrite=True))


def test_an_output_that_exists_is_refused_before_anything_is_scored(models: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    events: list[Event] = []
    with pytest.raises(OutputError):
        evaluate(recipe(models / "vit", out=tmp_path / "taken"), WORLD, events.append)
    assert events == []
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"


def test_an_external_program_scores(models: Path, tmp_path: Path) -> None:
    code = "import os, sys; print(len(os.listdir(sys.argv[1])) + sys.argv[1].endswith('vit'))"
    command = f"'{sys.executable}' -c \"{code}\" {{checkpoint}}"
    values = {"data": None, "score_command": command, "metric": "files", "out": tmp_path / "scores"}
    result, events = run(recipe(models / "resnet-0", models / "vit", **values))
    found = {Path(name).name: node["external"]["files"]["value"] for name, node in result["metrics"].items()}
    assert found == {"resnet-0": 2.0, "vit": 3.0}
    assert next(event for event in events if isinstance(event, Table)).columns == ("checkpoint", "files")
    assert Manifest.read(tmp_path / "scores").metrics == result["metrics"]


def test_an_external_program_that_fails_leaves_nothing(models: Path, tmp_path: Path) -> None:
    command = f"'{sys.executable}' -c \"raise SystemExit('no GPU')\" {{checkpoint}}"
    with pytest.raises(TaskError, match="no GPU"):
        run(recipe(models / "vit", score_command=command, out=tmp_path / "scores"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"metric": "f1"}, TaskError, "'f1' is not known"),
        ({"data": None}, TaskError, "needs data"),
        ({"score_command": "true"}, TaskError, "has no {checkpoint}"),
        ({"score_command": "x {checkpoint}", "ensemble": "logits"}, RecipeError, "ensemble"),
        ({"baseline": "/no/such/place"}, SoupkitError, "no such file"),
    ],
)
def test_what_cannot_work_is_refused(
    models: Path, values: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        run(recipe(models / "vit", **values))
    assert words in str(caught.value)


def trained_with(directory: Path, **options: Any) -> None:
    """Give a checkpoint the manifest of a fine-tuning with these splits."""
    task = open_task(Checkpoint(directory), small_recipe(**options), WORLD)
    Manifest(command="finetune", recipe={}, notes={"data": task.splits.description}).write(directory)


def test_scores_on_training_examples_are_warned_of(tmp_path: Path) -> None:
    saved(tmp_path / "a", "timm:test_resnet,num_classes=10,img_size=32")
    trained_with(tmp_path / "a")
    _, events = run(recipe(tmp_path / "a"))
    assert not [event for event in events if isinstance(event, Warned)]
    trained_with(tmp_path / "a", split_seed=1, num_train=900, num_held_out=100)
    _, events = run(recipe(tmp_path / "a"))
    warnings = [event.message for event in events if isinstance(event, Warned)]
    ours = open_task(Checkpoint(tmp_path / "a"), small_recipe(), WORLD).splits
    theirs = open_task(
        Checkpoint(tmp_path / "a"), small_recipe(split_seed=1, num_train=900, num_held_out=100), WORLD
    ).splits
    shared = len(np.intersect1d(ours.test.indices, theirs.train.indices))
    assert shared > 0
    assert len(warnings) == 2
    assert f"trained on {shared} of the 100 test examples" in warnings[1]
