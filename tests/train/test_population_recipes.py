"""The recipes of published settings say what was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from soupkit.recipe.population import TrainPopulation
from soupkit.recipe.steps import load_steps

FOLDER = Path(__file__).parents[2] / "recipes" / "train"
SMALL_IMAGES = {
    "epochs": 300,
    "batch_size": 64,
    "lr": 0.1,
    "min_lr": 1e-4,
    "weight_decay": 1e-4,
    "average_every": 10,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "papa-resnet18-cifar100": SMALL_IMAGES | {"pulls": 0.01, "merge_every": 5, "num_members": 10,
    "num_held_out": 1000},
    "papa-vgg16-cifar10": SMALL_IMAGES | {"pulls": 0.01, "merge_every": 5, "num_members": 5,
    "num_held_out": 1000},
    "papa-resnet50-imagenet": {
        "epochs": 90, "batch_size": 256, "num_members": 3, "merge_every": 1, "mixup": (0.0, 0.1, 0.2),
        "pulls": 0.01,
    },
    "papa-finetune-cifar100": {
        "epochs": 50, "optimizer": "adamw", "lr": 1e-4, "min_lr": 1e-6, "pulls": 0.0005, "merge_every": 20,
        "linear_probe": 0.04,
    },
    "papa-digits": {"num_members": 5},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_what_was_published(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    assert f"soupkit run recipes/train/{name}.yaml" in path.read_text(encoding="utf-8").split("\nsteps:")[0]
    loaded = load_steps(path)
    recipe = loaded.steps[0].recipe
    assert loaded.description
    assert isinstance(recipe, TrainPopulation)
    for option, value in PUBLISHED[name].items():
        assert getattr(recipe, option) == pytest.approx(value), option


def test_every_recipe_has_its_check() -> None:
    assert {path.stem for path in FOLDER.glob("papa-*.yaml")} == set(PUBLISHED)


def test_merging_variants_do_not_pull() -> None:
    recipe = load_steps(FOLDER / "papa-vgg16-cifar10.yaml", ["method=papa-2"]).steps[0].recipe
    assert recipe.merges
    assert recipe.pulls == 0
