"""The ensemble that grows member by member, against the one of all members at once."""

from __future__ import annotations

import numpy as np
import pytest

from soupkit.errors import TaskError
from soupkit.task.images.ensembles import RunningEnsemble
from soupkit.task.images.metrics import ensemble
from soupkit.task.score import Predictions


def members(num: int, *, scale: float = 3.0) -> list[Predictions]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, 20)
    return [
        Predictions((scale * rng.standard_normal((20, 5))).astype(np.float32), targets) for _ in range(num)
    ]


@pytest.mark.parametrize("kind", ["logits", "softmax"])
def test_it_is_the_ensemble_of_all_members(kind: str) -> None:
    running = RunningEnsemble()
    for number, member in enumerate(members(4), start=1):
        running.add(member)
        expected = ensemble(members(4)[:number], kind)  # type: ignore[arg-type]
        np.testing.assert_allclose(running.predictions(kind).outputs, expected.outputs, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_certain_members_stay_finite() -> None:
    running = RunningEnsemble()
    for member in members(2, scale=2000.0):
        running.add(member)
    assert np.isfinite(running.predictions("softmax").outputs).all()


def test_members_must_be_of_the_same_examples() -> None:
    running, (first, second) = RunningEnsemble(), members(2)
    running.add(first)
    for other in (
        Predictions(second.outputs[:, :4], second.targets),
        Predictions(second.outputs, (second.targets + 1) % 5),
    ):
        with pytest.raises(TaskError, match="same examples"):
            running.add(other)
    assert running.num_members == 1
