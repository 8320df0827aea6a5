"""A model at points between checkpoints: what is loaded, and where it is changed."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from soupkit.checkpoint.compatible import check_compatible
from soupkit.merge.mixture import Mixture, interpolate
from soupkit.merge.writer import StreamOptions
from soupkit.stages.scoring.points import PointModel
from soupkit.task.task import Task


class Loaded:
    """A task that keeps what it is given."""

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors


def test_a_point_between_is_mixed_and_changed_and_an_end_is_not() -> None:
    a = {"w": np.array([0.0, 2.0], np.float32), "n": np.array(3)}
    b = {"w": np.array([1.0, 0.0], np.float32), "n": np.array(9)}
    task, changed = Loaded(), []
    model = PointModel(
        cast(Task, task),
        cast(Any, [a, b]),
        check_compatible([a, b]),
        options=StreamOptions(integers="first"),
        change=lambda mixture: changed.append(cast(Mixture, mixture).matrix[:, 0].tolist()),
    )
    for at, expected in ((0.0, [0.0, 2.0]), (0.25, [0.25, 1.5]), (1.0, [1.0, 0.0])):
        model.load(interpolate("a", "b", at))
        assert task.tensors["w"].tolist() == expected
        assert task.tensors["w"].dtype == np.float32
    assert changed == [[0.75, 0.25]]
    model.load(interpolate("a", "b", 0.5))
    assert task.tensors["n"] == 3
