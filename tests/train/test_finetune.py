"""The finetune job: what it writes can be loaded, repeated and believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from task.small import CLIP_CONFIG
from train.small import finetune_recipe

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.tensors import write_tensors
from soupkit.errors import OutputError, RecipeError, TaskError
from soupkit.events import Advanced, Event, Scored, Table, Told, silent
from soupkit.jobs.training.finetune import finetune
from soupkit.manifest import Manifest
from soupkit.recipe.evaluate import Evaluate
from soupkit.stages.training.start import prepare
from soupkit.task.images.metrics import all_scores
from soupkit.task.images.models import ModelSpec, build
from soupkit.task.images.task import open_task
from soupkit.task.score import scores_to_json
from soupkit.task.weights import arrays
from soupkit.world import World

ALONE = World("cpu", threads=1)
FEW = {"num_train": 96, "num_held_out": 120, "num_test": 110, "epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained from random weights."""
    out = tmp_path_factory.mktemp("runs") / "base"
    finetune(finetune_recipe(out=out, model="timm:test_resnet,img_size=32", **FEW), ALONE, silent)
    return out


def tuned(out: Path, base: Path, report: Any = silent, **values: Any) -> dict[str, Any]:
    recipe = finetune_recipe(**({"out": out, "base": str(base), "model": None} | FEW | values))
    return finetune(recipe, ALONE, report)


def test_what_is_written_is_whole_and_true(base: Path) -> None:
    assert {path.name for path in base.iterdir()} == {"model.safetensors", "config.json", "soupkit.json"}
    manifest, checkpoint = Manifest.read(base), Checkpoint(base)
    assert manifest.command == "finetune"
    assert manifest.inputs == []
    assert manifest.outputs["content"] == content_hash(checkpoint)
    assert manifest.notes["hyper_parameters"]["lr"] == manifest.recipe["lr"] == 3e-3
    assert manifest.notes["data"]["sizes"] == {"train": 96, "held_out": 120, "test": 110}
    assert len(manifest.notes["loss"]) == 1
    task = open_task(checkpoint, Evaluate(refs=("",), data="digits", batch_size=32, **_sizes(FEW)), ALONE)
    for split, examples in (("held_out", task.held_out), ("test", task.test)):
        assert manifest.metrics[split] == scores_to_json(all_scores(task.predict(examples)))


def _sizes(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name.startswith("num")}


def test_timm_loads_it_without_soupkit(base: Path) -> None:
    model = timm.create_model(f"local-dir:{base}", pretrained=True)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.pretrained_cfg["label_names"] == [str(i) for i in range(10)]
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), Checkpoint(base)[name], err_msg=name)


def test_from_a_base_and_the_same_seed_the_same_bits(base: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    one = tuned(tmp_path / "one", base, events.append, mixup=0.3, rand_augment=1)
    two = tuned(tmp_path / "two", base, mixup=0.3, rand_augment=1)
    other = tuned(tmp_path / "other", base, mixup=0.3, rand_augment=1, seed=1)
    assert one["outputs"]["content"] == two["outputs"]["content"] != other["outputs"]["content"]
    [entry] = one["inputs"]
    assert entry["content"] == content_hash(Checkpoint(base))
    assert (tmp_path / "one" / entry["path"]).resolve() == (base / "").resolve()
    assert [event.name for event in events if isinstance(event, Scored)] == ["held_out", "test"]
    assert sum(event.by for event in events if isinstance(event, Advanced)) == 3
    assert json.loads((tmp_path / "one" / "soupkit.json").read_text())["metrics"] == one["metrics"]


def test_the_number_of_threads_is_given_back(base: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    recipe = finetune_recipe(out=tmp_path / "out", base=str(base), model=None, dry_run=True, **FEW)
    finetune(recipe, World("cpu", threads=before + 1), silent)
    assert torch.get_num_threads() == before


def test_another_number_of_classes_gets_a_new_head_the_same_for_every_seed(
    base: Path, tmp_path: Path
) -> None:
    for name in ("cat", "dog", "eel"):
        for i in range(8):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 40, 3), 30 * i, np.uint8)).save(
                tmp_path / "data" / name / f"{i}.png"
            )
    events: list[Event] = []
    values = {"base": str(base), "model": None, "data": str(tmp_path / "data"), "batch_size": 4}
    values |= {"num_train": 10, "num_held_out": 6, "num_test": 6}
    one = prepare(finetune_recipe(seed=0, **values), ALONE, events.append).task
    two = prepare(finetune_recipe(seed=1, **values), ALONE, silent).task
    assert any(isinstance(event, Told) and "10 classes, the data 3" in event.message for event in events)
    weights, old = one.tensors(), Checkpoint(base)
    changed = [name for name in weights if not np.array_equal(weights[name], old[name])]
    assert sorted(changed) == ["fc.bias", "fc.weight"]
    assert weights["fc.weight"].shape[0] == 3
    assert np.abs(weights["fc.weight"]).max() > 0
    assert all(np.array_equal(weights[name], other) for name, other in two.tensors().items())


def test_dry_run_writes_nothing(base: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    result = tuned(tmp_path / "out", base, events.append, dry_run=True)
    assert result["plan"]["training examples"] == 96
    assert [type(event) for event in events] == [Table]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"batch_size": 97}, RecipeError, "batch_size is 97, but there are 96 training examples"),
        ({"optimizer": "adamz"}, RecipeError, "adamz"),
        ({"data": "digitz"}, TaskError, "digitz"),
        ({"data": None}, TaskError, "no data"),
        ({"model": "timm:test_vit,img_size=32"}, TaskError, "not this model's"),
    ],
)
def test_refused_before_training(
    base: Path, tmp_path: Path, values: dict[str, Any], kind: type[Exception], words: str
) -> None:
    events: list[Event] = []
    with pytest.raises(kind, match=words):
        tuned(tmp_path / "out", base, events.append, **values)
    assert not [event for event in events if isinstance(event, Advanced)]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_told_otherwise(base: Path, tmp_path: Path) -> None:
    tuned(tmp_path / "out", base)
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(OutputError, match="exists already"):
        tuned(tmp_path / "out", base, lr=1e-3)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    assert tuned(tmp_path / "out", base, lr=1e-3, overwrite=True)["recipe"]["lr"] == 1e-3


def test_divergence_and_interruption_leave_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="training loss became"):
        tuned(tmp_path / "out", base, lr=1e30, optimizer="sgd", warmup_epochs=0.0, epochs=3)

    def interrupt(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "out", base, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_clip_learns_with_its_image_tower(tmp_path: Path) -> None:
    """The head is made by the text tower of the base; so the text tower stays, and the soup of such runs
    keeps it."""
    directory = tmp_path / "clip"
    directory.mkdir()
    torch.manual_seed(3)
    weights = arrays(build(ModelSpec("open_clip", "tiny", {}, CLIP_CONFIG)))
    write_tensors(directory, weights, file_name="open_clip_model.safetensors")
    (directory / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG))
    result = tuned(tmp_path / "out", directory, lr=1e-2, epochs=2, ema_decay=0.5, swa_start=0.0)
    after = Checkpoint(tmp_path / "out")
    changed = {name for name in weights if not np.array_equal(weights[name], after[name])}
    assert set(after) == set(weights)
    assert {name for name in changed if not name.startswith("visual.")} <= {"logit_scale"}
    assert len(changed) > 10
    for average in ("ema", "swa"):
        beside = Checkpoint(tmp_path / "out" / average)
        assert beside.files[0].name == "open_clip_model.safetensors"
        assert {name for name in after if not np.array_equal(after[name], beside[name])} == changed
    assert (tmp_path / "out" / "open_clip_model.safetensors").is_file()
    assert result["notes"]["loss"][1] < result["notes"]["loss"][0]
