"""A small task: scikit-learn's digits."""

from __future__ import annotations

import pytest
from train.small import SETTINGS, finetune_recipe

from soupkit.task.data import Splits, open_data
from soupkit.train.loop import TrainingData


@pytest.fixture(scope="session")
def digits() -> Splits:
    return open_data(finetune_recipe())


@pytest.fixture
def training_data(digits: Splits) -> TrainingData:
    return TrainingData(digits.train, SETTINGS, 10, characters=True)
