"""A small task: scikit-learn's digits, and a base to start a sweep from."""

from __future__ import annotations

from pathlib import Path

import pytest
from train.small import finetune_recipe

from soupkit.events import silent
from soupkit.jobs.training.finetune import finetune
from soupkit.task.images.data import Splits, open_data
from soupkit.world import World


@pytest.fixture(scope="session")
def digits() -> Splits:
    return open_data(finetune_recipe())


@pytest.fixture(scope="session")
def sweep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base"
    recipe = finetune_recipe(
        out=out, model="timm:test_resnet,img_size=32", num_train=64, epochs=1, device="cpu"
    )
    finetune(recipe, World("cpu", threads=1), silent)
    return out
