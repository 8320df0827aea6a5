"""The head of class names and templates against open_clip's own, and its renewal with the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from task.small import described, recipe

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import TaskError
from soupkit.task.images.models import build, build_tokenizer, describe
from soupkit.task.images.task import open_task
from soupkit.task.images.zero_shot import ZeroShotClassifier
from soupkit.world import World

NAMES = ("cat", "dog", "a very long name of {} things")
TEMPLATES = ("a photo of a {}.", "the {}, {} again", "{}")
WORLD = World("cpu", 1)


@pytest.fixture(scope="module")
def classifier(clip_directory: Path) -> ZeroShotClassifier:
    spec = describe(described(clip_directory, "open_clip_config.json"), None)
    torch.manual_seed(0)
    return ZeroShotClassifier(build(spec), build_tokenizer(spec), class_names=NAMES, templates=TEMPLATES)


def test_the_head_is_open_clips(classifier: ZeroShotClassifier, clip_directory: Path) -> None:
    expected = open_clip.build_zero_shot_classifier(
        classifier.clip,
        open_clip.get_tokenizer(f"local-dir:{clip_directory}"),
        NAMES,
        [lambda name, t=template: t.replace("{}", name) for template in TEMPLATES],
    )
    classifier.rebuild_head(batch_size=2)
    torch.testing.assert_close(classifier.head, expected, rtol=1e-5, atol=1e-6)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        features = torch.nn.functional.normalize(classifier.clip.encode_image(images), dim=-1)
        logits = classifier.clip.logit_scale.exp() * features @ expected
        torch.testing.assert_close(classifier(images), logits, rtol=1e-4, atol=1e-4)


def test_the_head_is_made_for_the_first_image(clip_directory: Path) -> None:
    spec = describe(described(clip_directory, "open_clip_config.json"), None)
    fresh = ZeroShotClassifier(build(spec), build_tokenizer(spec), class_names=NAMES, templates=TEMPLATES)
    assert fresh.head.numel() == 0
    assert fresh(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert not any(name.endswith(("head", "tokens")) for name in fresh.state_dict())


@pytest.mark.parametrize("templates", [(), ("no place",)])
def test_templates_need_a_place_for_the_name(
    classifier: ZeroShotClassifier, templates: tuple[str, ...]
) -> None:
    with pytest.raises(TaskError, match="template"):
        ZeroShotClassifier(
            classifier.clip, lambda texts: torch.zeros(len(texts), 16), class_names=NAMES, templates=templates
        )


def test_a_task_renews_the_head_when_weights_are_loaded(clip_directory: Path) -> None:
    checkpoint = Checkpoint(clip_directory)
    task = open_task(checkpoint, recipe(class_names=tuple(f"the digit {i}" for i in range(10))), WORLD)
    before = task.predict(task.held_out).outputs
    other = {
        name: array * np.float32(1.5) if name.startswith("transformer") else array
        for name, array in checkpoint.items()
    }
    task.load(other)
    after = task.predict(task.held_out).outputs
    assert not np.allclose(before, after)
    text = task.model.clip.encode_text(task.model.tokens[:1], normalize=True)[0]  # type: ignore[union-attr, operator, index]
    torch.testing.assert_close(task.model.head[:, 0], text.detach(), rtol=1e-5, atol=1e-6)  # type: ignore[index]
    task.load(checkpoint)
    np.testing.assert_array_equal(task.predict(task.held_out).outputs, before)
    assert set(task.tensors()) == set(checkpoint)


def test_class_names_must_be_as_many_as_classes(clip_directory: Path) -> None:
    with pytest.raises(TaskError, match="2 class names for data of 10"):
        open_task(Checkpoint(clip_directory), recipe(class_names=("a", "b")), WORLD)
