"""A task predicts, stops early without changing a verdict, and says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from task.small import described, recipe, saved, score_predictions

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import TaskError
from soupkit.task.images.data import Part, Splits, open_data
from soupkit.task.images.task import ImageTask, open_task
from soupkit.task.images.transforms import ImageSettings
from soupkit.task.spec import ModelSpec
from soupkit.world import World

WORLD = World("cpu", 1)
SETTINGS = ImageSettings((1, 1, 2), (0.0,), (1.0,), "nearest", 1.0, "squash")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("task") / "resnet"
    saved(directory, "timm:test_resnet,num_classes=10,img_size=32")
    return directory


class Numbered:
    """Image i holds the number i in two pixels."""

    def __init__(self, targets: np.ndarray) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.array([[index // 256, index % 256]], np.uint8)), int(self.targets[index])


class LookUp(torch.nn.Module):
    """A model that looks the logits of image i up; counts the images that it was shown."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits, self.num_seen = torch.from_numpy(logits), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.num_seen += len(images)
        pixels = (images.reshape(len(images), 2) * 255).round().long()
        return self.logits[pixels[:, 0] * 256 + pixels[:, 1]]


def look_up_task(logits: np.ndarray, targets: np.ndarray, batch_size: int) -> ImageTask:
    part = Part(Numbered(targets), np.arange(len(targets)))
    splits = Splits(part, part, part, tuple("abcdefgh"), True, {"data": "numbers"})
    spec = ModelSpec("timm", "look-up")
    return ImageTask(
        LookUp(logits), spec, splits, SETTINGS, device=torch.device("cpu"), batch_size=batch_size
    )


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 300), st.integers(0, 2**32), st.floats(0, 8), st.sampled_from(["top1", "top5"]),
    st.sampled_from([1, 20, 32, 100, 512]), st.booleans(), st.integers(-3, 3),
)  # fmt: skip
def test_early_stop_never_changes_a_verdict(
    num: int, seed: int, skill: float, metric: str, batch_size: int, ordered: bool, offset: int
) -> None:
    random = np.random.default_rng(seed)
    targets = random.integers(0, 8, num)
    logits = (random.normal(size=(num, 8)) + skill * np.eye(8)[targets]).astype(np.float32)
    task = look_up_task(logits, targets, batch_size)
    whole = score_predictions(task.predict(task.held_out), metric)
    assert whole.num_right is not None
    task.model.num_seen = 0  # type: ignore[assignment]
    needed = int(
        np.clip(random.integers(0, num + 1) if offset == 3 else whole.num_right + offset, 0, num + 1)
    )
    order = random.permutation(num) if ordered else None
    trial = task.trial(task.held_out, metric=metric, order=order, needed_right=needed)
    assert trial.stopped == (whole.num_right < needed)
    assert trial.num_evaluated == task.model.num_seen <= num
    if trial.stopped:
        assert trial.value >= whole.value
        assert trial.value * num < needed
        assert trial.margins is None
    else:
        assert (trial.value, trial.num_right, trial.standard_error) == (
            whole.value,
            whole.num_right,
            whole.standard_error,
        )
        np.testing.assert_array_equal(trial.margins, whole.margins)


def test_an_early_stop_comes_early_with_the_doubtful_examples_first() -> None:
    targets = np.zeros(1000, np.int64)
    logits = np.tile(np.array([1.0, 0, 0, 0, 0, 0, 0, 0], np.float32), (1000, 1))
    logits[::10] *= -1
    task = look_up_task(logits, targets, 256)
    margins = task.trial(task.held_out, metric="top1").margins
    assert margins is not None
    first = task.trial(task.held_out, metric="top1", order=np.argsort(margins), needed_right=980)
    assert (first.stopped, first.num_evaluated) == (True, 32)
    later = task.trial(task.held_out, metric="top1", needed_right=970)
    assert later.num_evaluated == 32 + 64 + 128 + 256  # the 31st mistake is image 301


@pytest.mark.parametrize("metric", ["nll", "ece"])
def test_metrics_that_do_not_count_are_evaluated_whole(metric: str) -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 8, 100)
    task = look_up_task(random.normal(size=(100, 8)).astype(np.float32), targets, 64)
    trial = task.trial(task.held_out, metric=metric, order=random.permutation(100), needed_right=100)
    assert not trial.stopped
    assert trial.value == pytest.approx(
        score_predictions(task.predict(task.held_out), metric).value, rel=1e-12
    )


def test_predictions_are_those_of_the_model_alone(resnet: Path) -> None:
    task = open_task(Checkpoint(resnet), recipe(), WORLD)
    found = task.predict(task.held_out)
    model = saved(resnet.parent / "again", "timm:test_resnet,num_classes=10,img_size=32")
    images = torch.cat([batch.images for batch in task.held_out.batches(batch_size=50)])
    with torch.no_grad():
        expected = torch.cat([model(part) for part in images.split(128)]).numpy()
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-4, atol=1e-5)
    assert found.outputs.dtype == np.float32
    np.testing.assert_array_equal(found.targets, task.splits.held_out.targets)


def test_the_whole_digit_is_shown(resnet: Path) -> None:
    task = open_task(Checkpoint(resnet), recipe(), WORLD)
    assert (task.settings.crop_pct, task.settings.input_size) == (1.0, (3, 32, 32))
    images = next(task.test.batches(batch_size=100)).images
    source = np.stack([np.asarray(task.splits.test[i][0]) for i in range(100)]) / 255
    shrunk = torch.nn.functional.adaptive_avg_pool2d(images * 0.5 + 0.5, 8)[:, 0].numpy()
    assert np.abs(shrunk - source).mean() < 0.1
    assert np.corrcoef(shrunk.ravel(), source.ravel())[0, 1] > 0.9


def test_loading_and_tensors(resnet: Path) -> None:
    checkpoint = Checkpoint(resnet)
    task = open_task(checkpoint, recipe(), WORLD)
    assert set(task.tensors()) == set(checkpoint)
    before = task.predict(task.test).outputs
    task.load(
        {
            name: array * np.float32(0.5) if array.dtype == np.float32 else array
            for name, array in checkpoint.items()
        }
    )
    assert not np.allclose(task.predict(task.test).outputs, before)
    with pytest.raises(TaskError, match=r"lacks fc\.bias"):
        task.load({name: array for name, array in checkpoint.items() if name != "fc.bias"})
    task.load(checkpoint)
    np.testing.assert_array_equal(task.predict(task.test).outputs, before)


def test_the_fingerprint_tells_tasks_apart(resnet: Path) -> None:
    checkpoint = Checkpoint(resnet)
    first = open_task(checkpoint, recipe(), WORLD).fingerprint()
    assert open_task(checkpoint, recipe(batch_size=7), WORLD).fingerprint() == first
    others = [
        recipe(split_seed=1),
        recipe(num_held_out=151),
        recipe(model="timm:test_resnet,num_classes=10,img_size=48"),
    ]
    assert len({first, *(open_task(checkpoint, other, WORLD).fingerprint() for other in others)}) == 4


def test_a_bare_file_needs_a_model_and_takes_its_classes_from_the_data(resnet: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((resnet / "model.safetensors").read_bytes())
    with pytest.raises(TaskError, match="does not say what model"):
        open_task(Checkpoint(bare), recipe(), WORLD)
    task = open_task(Checkpoint(bare), recipe(model="timm:test_resnet,img_size=32"), WORLD)
    whole = open_task(Checkpoint(resnet), recipe(), WORLD)
    np.testing.assert_array_equal(task.predict(task.test).outputs, whole.predict(whole.test).outputs)


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "timm:test_resnet,num_classes=7,img_size=32")
    with pytest.raises(TaskError, match="tells 7 classes apart, the data has 10"):
        open_task(Checkpoint(tmp_path), recipe(), WORLD)


def test_data_are_needed(resnet: Path) -> None:
    with pytest.raises(TaskError, match="needs data"):
        open_task(Checkpoint(resnet), recipe(data=None), WORLD)


def test_a_dict_and_a_described_model_are_enough(resnet: Path) -> None:
    """Anything with a configuration and arrays is a checkpoint to a task."""

    class Fake(dict[str, np.ndarray]):
        config, companions, reference = described(resnet).config, (), "fake"
        files = (resnet / "model.safetensors",)

    task = open_task(Fake(Checkpoint(resnet).items()), recipe(), WORLD, splits=open_data(recipe()))  # type: ignore[arg-type]
    assert task.predict(task.test).outputs.shape == (100, 10)
