"""Two short independent training runs of one small model, and a curve between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train.small import finetune_recipe

from soupkit.events import silent
from soupkit.jobs.training.finetune import finetune
from soupkit.world import World

FEW = {
    "data": "digits",
    "num_train": 60,
    "num_held_out": 50,
    "num_test": 40,
    "batch_size": 20,
    "device": "cpu",
}
ALONE = World("cpu", threads=1)


def few(**values: Any) -> dict[str, Any]:
    """The options of a small task, with some of them changed."""
    return FEW | values


@pytest.fixture(scope="session")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("ends")
    for seed in (0, 1):
        model = "timm:test_resnet,img_size=16,num_classes=10"
        recipe = finetune_recipe(
            **few(out=folder / f"model-{seed}", model=model, epochs=2, lr=3e-3, seed=seed)
        )
        finetune(recipe, ALONE, silent)
    return str(folder / "model-0"), str(folder / "model-1")


@pytest.fixture(scope="session")
def curve_directory(ends: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from soupkit.jobs.curves.fit import curve_fit
    from soupkit.recipe.curve import CurveFit

    out = tmp_path_factory.mktemp("curves") / "bezier"
    curve_fit(CurveFit(refs=ends, out=out, epochs=2, lr=0.01, **FEW), ALONE, silent)
    return out
