"""The section of open_clip_config.json that describes a learned head, and the names of its tensors."""

from __future__ import annotations

from typing import Any

import pytest

from soupkit.checkpoint.config.classifier import head_shape, parts_of, published_prefix
from soupkit.checkpoint.config.meaning import check_meaning
from soupkit.errors import CheckpointError, CompatibilityError
from soupkit.task.classifier import Classifier

SECTION: dict[str, Any] = {"num_classes": 2, "num_features": 4}


def test_a_section_is_read_as_it_is_written() -> None:
    form = Classifier(2, 4, bias=False, logit_scale=True, class_names=("a", "b"), parts=("logit_scale", "x"))
    assert Classifier.of({"classifier": form.to_json()}) == form
    assert form.resting == {"x"}
    assert Classifier.of({"model_cfg": {}}) is None


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (3, "not what says of a head"),
        ({"num_features": 4}, "num_classes"),
        (SECTION | {"num_classes": True}, "True classes"),
        (SECTION | {"num_classes": 0}, "0 classes"),
        (SECTION | {"normalize": "yes"}, "not true or false"),
        (SECTION | {"class_names": ["a"]}, "1 class names for 2"),
        (SECTION | {"class_names": [1, 2]}, "no list of words"),
        (SECTION | {"parts": "all"}, "no list of words"),
        (SECTION | {"logit_scale": True}, "not among its parts"),
        (SECTION | {"dropout": 0.1}, "says dropout"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        Classifier.of({"classifier": section})


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["model.visual.proj", "model.logit_scale", "classification_head.weight"], "model."),
        (["image_encoder.model.visual.proj", "classification_head.weight"], "image_encoder.model."),
        (["visual.proj", "token_embedding.weight", "classification_head.weight"], ""),
        (["model.visual.proj", "other.weight", "classification_head.weight"], None),
        (["model.visual.proj", "classification_head.bias"], None),
        (["audiovisual.proj", "classification_head.weight"], None),
        (["conv1.weight", "classification_head.weight"], None),
    ],
)
def test_the_published_layout_is_known_by_names(names: list[str], prefix: str | None) -> None:
    assert published_prefix(names) == prefix


def test_what_is_no_linear_head_is_refused() -> None:
    head = {"classification_head.weight": (2, 4)}
    assert head_shape(head | {"classification_head.bias": (2,)}) == (2, 4)
    for wrong in ({"classification_head.bias": (3,)}, {"classification_head.0.weight": (2, 2)}):
        with pytest.raises(CheckpointError, match="no part of a linear head"):
            head_shape(head | wrong)
    assert parts_of(["visual.a", "ln_final.bias", "ln_final.weight", "logit_scale", *head]) == (
        "ln_final",
        "logit_scale",
    )


@pytest.mark.parametrize("change", [{"normalize": False}, {"class_names": ["dog", "cat"]}])
def test_heads_that_mean_something_else_are_not_merged(change: dict[str, Any]) -> None:
    section = SECTION | {"normalize": True, "class_names": ["cat", "dog"]}
    configs = [{"model_cfg": {}, "classifier": section | each} for each in ({}, change)]
    with pytest.raises(CompatibilityError):
        check_meaning(configs, ["a", "b"])
    assert check_meaning(configs, ["a", "b"], mismatch="warn")
