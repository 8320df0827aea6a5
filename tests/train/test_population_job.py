"""`train-population` from recipe to directory: what is written is whole, true, loadable, and not written
twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from train.population_small import ALONE, population_recipe

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.reference import open_references
from soupkit.checkpoint.seen import seen_by
from soupkit.errors import OutputError, RecipeError
from soupkit.events import Advanced, Event, Table, Told, Wrote, silent
from soupkit.jobs.training import population as job
from soupkit.jobs.training.population import train_population
from soupkit.manifest import Manifest
from soupkit.recipe.population import TrainPopulation
from soupkit.stages.training.population_results import mean_accuracy
from soupkit.task.images.stem import for_small_images, stem_stride
from soupkit.task.score import Predictions, share_error

MODEL = "timm:test_resnet,img_size=32"


def recipe(out: Path, **values: Any) -> TrainPopulation:
    defaults = {"model": MODEL, "num_members": 2, "num_held_out": 60, "num_test": 50, "mixup": (0.0, 0.3)}
    return population_recipe(out=out, device="cpu", **(defaults | values))


def told(events: list[Event]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Told))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Event]]:
    out, events = tmp_path_factory.mktemp("runs") / "papa", list[Event]()
    return out, train_population(recipe(out), ALONE, events.append), events


def test_what_is_written(run: tuple[Path, dict[str, Any], list[Event]]) -> None:
    out, result, events = run
    names = {"average", "greedy", "member-000", "member-001", "scores.png", "similarity.png", "soupkit.json"}
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == names
    assert not (out / ".unfinished").exists()
    assert Manifest.read(out).to_json() == result
    assert result["command"] == "train-population"
    assert [checkpoint.path.name for checkpoint in open_references([str(out)])] == [
        "member-000",
        "member-001",
    ]
    assert result["notes"]["members"] == ["member-000", "member-001"]
    chosen = result["notes"]["hyper_parameters"]
    assert {chosen[name]["mixup"] for name in chosen} == {0.0, 0.3}
    assert chosen["member-000"]["seed"] != chosen["member-001"]["seed"]
    assert len(result["notes"]["history"]["losses"]) == 2
    [table] = [event for event in events if isinstance(event, Table)]
    assert [row[0] for row in table.rows] == [
        "members, mean",
        "ensemble of logits",
        "ensemble of softmax",
        "average soup",
        "greedy soup",
    ]
    assert "held-out n = 60, test n = 50" in table.caption
    assert [event.path.name for event in events if isinstance(event, Wrote)] == ["average", "greedy", "papa"]


def test_the_average_is_the_mean_of_the_members(run: tuple[Path, dict[str, Any], list[Event]]) -> None:
    out, result, _ = run
    a, b, average = (Checkpoint(out / name) for name in ("member-000", "member-001", "average"))
    for name in average:
        if np.issubdtype(average[name].dtype, np.floating):
            mean = (a[name].astype(np.float64) + b[name].astype(np.float64)) / 2
            np.testing.assert_array_equal(average[name], mean.astype(np.float32))
    assert not np.array_equal(a["fc.weight"], b["fc.weight"])
    for name in ("member-000", "greedy"):
        manifest = Manifest.read(out / name)
        assert manifest.outputs["content"] == content_hash(Checkpoint(out / name))
    member = Manifest.read(out / "member-001").metrics["test"]["top1"]
    assert result["metrics"]["member-001"]["test"]["top1"] == member


def test_timm_loads_members_and_soups_without_soupkit(run: tuple[Path, dict[str, Any], list[Event]]) -> None:
    out, _, _ = run
    for name in ("member-001", "average", "greedy"):
        model = timm.create_model(f"local-dir:{out / name}", pretrained=True)
        assert model.pretrained_cfg["input_size"] == (3, 32, 32)
        for key, tensor in model.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), Checkpoint(out / name)[key], err_msg=key)


def test_finished_work_is_not_done_again(run: tuple[Path, dict[str, Any], list[Event]]) -> None:
    out, result, _ = run
    before = (out / "member-000" / "model.safetensors").stat().st_mtime_ns
    events: list[Event] = []
    assert train_population(recipe(out, workers=0, save_every=3), ALONE, events.append) == result
    assert "finished already" in told(events)
    assert not (out / ".unfinished").exists()
    assert [type(event) for event in events if isinstance(event, Table | Advanced)] == [Table]
    assert (out / "member-000" / "model.safetensors").stat().st_mtime_ns == before
    _forget_option(out, "ema_every")
    assert train_population(recipe(out), ALONE, silent)["metrics"] == result["metrics"]
    with pytest.raises(OutputError, match=r"another recipe: lr was 0.05, is now 0.01") as caught:
        train_population(recipe(out, lr=0.01), ALONE, silent)
    assert "--overwrite" in str(caught.value.hint)
    assert (out / "soupkit.json").exists()


def _forget_option(out: Path, name: str) -> None:
    """As if a soupkit without that option had written it."""
    values = json.loads((out / "soupkit.json").read_text())
    del values["recipe"][name]
    (out / "soupkit.json").write_text(json.dumps(values))


class KilledError(Exception):
    """Stands for a kill."""


def contents(out: Path) -> list[str]:
    return [
        content_hash(Checkpoint(out / name)) for name in ("member-000", "member-001", "average", "greedy")
    ]


@pytest.mark.parametrize("where", ["update 3", "member-001"])
def test_after_a_kill_the_same_command_ends_with_the_same_bits(
    where: str, run: tuple[Path, dict[str, Any], list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it trains, and while it writes what it trained."""
    killed = recipe(tmp_path / "papa", save_every=3)

    def stop(event: Event) -> None:
        if where == "update 3" and isinstance(event, Advanced) and event.task == "train":
            stop.count += event.by  # type: ignore[attr-defined]
            if stop.count > 3:  # type: ignore[attr-defined]
                raise KilledError

    stop.count = 0  # type: ignore[attr-defined]
    write = job._write_member

    def failing(plan: Any, member: Any, *rest: Any, **options: Any) -> None:
        if where == "member-001" and member.number == 1:
            raise KilledError
        write(plan, member, *rest, **options)

    monkeypatch.setattr(job, "_write_member", failing)
    with pytest.raises(KilledError):
        train_population(killed, ALONE, stop)
    monkeypatch.undo()
    assert not (killed.out / "soupkit.json").exists()
    with pytest.raises(OutputError, match="batch_size was 16, is now 8"):
        train_population(dataclasses.replace(killed, batch_size=8), ALONE, silent)
    events: list[Event] = []
    train_population(killed, ALONE, events.append)
    assert f"continuing after update {3 if where == 'update 3' else 8} of 8" in told(events)
    assert contents(killed.out) == contents(run[0])


def test_starting_anew(run: tuple[Path, dict[str, Any], list[Event]], tmp_path: Path) -> None:
    out = tmp_path / "papa"
    killed = recipe(out, save_every=2)

    def stop(event: Event) -> None:
        if isinstance(event, Advanced) and event.task == "train" and "loss" in event.note:
            raise KilledError

    with pytest.raises(KilledError):
        train_population(killed, ALONE, stop)
    events: list[Event] = []
    train_population(dataclasses.replace(killed, resume=False), ALONE, events.append)
    assert "continuing" not in told(events)
    assert contents(out) == contents(run[0])
    other = recipe(out, num_members=1, epochs=1, overwrite=True)
    result = train_population(other, ALONE, silent)
    assert result["notes"]["members"] == ["member-000"]
    assert not (out / "member-001").exists()


def test_dry_run_and_refusals_write_nothing(tmp_path: Path) -> None:
    events: list[Event] = []
    result = train_population(recipe(tmp_path / "out", dry_run=True, method="papa-2"), ALONE, events.append)
    assert result["plan"]["members replaced after epochs"] == "1"
    plan, members = (event for event in events if isinstance(event, Table))
    assert dict(plan.rows)["pull towards the mean"] == "none"
    assert [row[2] for row in members.rows] == [row["mixup"] for row in result["members"]] == [0.0, 0.3]
    for values, words in (
        ({"batch_size": 100}, "batch_size is 100"),
        ({"optimizer": "adamz"}, "adamz"),
        ({"lr": 1e-5}, "member-000: lr is 1e-05"),
        ({"stem": "small", "model": "timm:test_resnet"}, "img_size"),
        ({"ema_start": 1}, "ema_decay is not given"),
        ({"posthoc_sigma": (0.1,)}, "no snapshots"),
    ):
        with pytest.raises(RecipeError, match=words):
            train_population(recipe(tmp_path / "out", **values), ALONE, silent)
    assert list(tmp_path.iterdir()) == []


def test_a_base_and_a_judge(run: tuple[Path, dict[str, Any], list[Event]], tmp_path: Path) -> None:
    """Members start from the base; greedy replacements are chosen on held-out data; the probe keeps the
    body."""
    values: dict[str, Any] = {
        "base": str(run[0] / "member-000"),
        "model": None,
        "method": "greedy",
        "merge_every": 1,
    }
    result = train_population(
        recipe(tmp_path / "papa", linear_probe=0.9, ema_decay=0.9, **values), ALONE, silent
    )
    first = result["notes"]["history"]["similarity"][0]
    assert first["cosine"] == pytest.approx(1)
    [entry] = result["notes"]["history"]["replacements"]
    assert entry["coefficients"][0] == entry["coefficients"][1]
    assert sum(entry["coefficients"][0]) == 1
    assert result["notes"]["base"] == content_hash(Checkpoint(run[0] / "member-000"))
    for name in ("member-000", "member-001"):
        averaged, trained = Checkpoint(tmp_path / "papa" / name / "ema"), Checkpoint(tmp_path / "papa" / name)
        assert not np.array_equal(averaged["fc.weight"], trained["fc.weight"])
        assert set(Manifest.read(trained.path).notes["averages"]) == {"ema"}
        for place in (trained.path, averaged.path):
            assert [entry["how"] for entry in seen_by(place)][:2] == ["trained", "selected"]


def test_the_mean_accuracy_has_the_error_of_common_examples() -> None:
    right = np.array([[1, 1, 0, 1], [1, 0, 0, 1]])
    targets = np.zeros(4, np.int64)
    predictions = [Predictions(np.stack([row, 1 - row], axis=1).astype(np.float32), targets) for row in right]
    found = mean_accuracy(predictions)
    assert found["value"] == 0.625
    assert (found["min"], found["max"], found["num_examples"]) == (0.5, 0.75, 4)
    assert found["standard_error"] == pytest.approx(share_error(np.var([1, 0.5, 0, 1]), 4))


@pytest.mark.parametrize(
    ("name", "stride"), [("resnet18", 4), ("vgg11", 1), ("convnext_atto", 4), ("mobilenetv3_small_050", 2)]
)
def test_small_images_reach_the_first_stage_whole(name: str, stride: int) -> None:
    with torch.device("meta"):
        assert stem_stride(timm.create_model(name)) == stride


def test_the_small_stem_of_a_resnet_works_at_the_images_resolution() -> None:
    assert for_small_images("timm:resnet18,img_size=32") == "timm:resnet18,img_size=128"
    model = timm.create_model("resnet18").eval()
    shapes: list[torch.Size] = []
    model.layer1.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    model(torch.zeros(1, 3, 128, 128))
    assert shapes[0][2:] == (32, 32)
