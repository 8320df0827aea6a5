"""RAM, RAM+, MagMax and EMR against loops over entries, straight from the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from soupkit.errors import RecipeError
from soupkit.merge.methods import all_methods
from soupkit.merge.pieces import Arrays

METHODS = all_methods()


def sparse(num: int = 4, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(9, 31)) * (rng.random((9, 31)) < 0.4) for _ in range(num)]


def run(name: str, arrays: list[np.ndarray], *, piece: int = 64, **parameters: Any) -> np.ndarray:
    pieces = Arrays(arrays, piece=piece)
    return pieces.merged(METHODS[name].function(pieces, **parameters))


def ram_reference(arrays: list[np.ndarray], epsilon: float, scale: list[float]) -> np.ndarray:
    result = np.zeros(arrays[0].size)
    for i, column in enumerate(zip(*(each.flat for each in arrays))):
        changed = [(k, value) for k, value in enumerate(column) if abs(value) > epsilon]
        if len(changed) == 1:
            result[i] = scale[changed[0][0]] * changed[0][1]
        elif changed:
            result[i] = sum(value for _, value in changed) / len(changed)
    return result.reshape(arrays[0].shape)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_ram_averages_what_is_shared_and_keeps_what_is_not(epsilon: float) -> None:
    expected = ram_reference(sparse(), epsilon, [1.0] * 4)
    np.testing.assert_allclose(run("ram", sparse(), epsilon=epsilon), expected, rtol=1e-15)


@pytest.mark.parametrize("clip", [0.2, 10.0])
def test_ram_plus_scales_what_one_task_alone_changed(clip: float) -> None:
    arrays = sparse()
    counts = sum((each != 0).astype(int) for each in arrays)
    ratios = [((each != 0) & (counts > 1)).sum() / ((each != 0) & (counts == 1)).sum() for each in arrays]
    expected = ram_reference(arrays, 0.0, [1 + 0.3 * min(ratio, clip) for ratio in ratios])
    np.testing.assert_allclose(run("ram-plus", arrays, epsilon=0.0, gain=0.3, clip=clip), expected)


def test_ram_plus_of_tasks_that_share_everything_is_their_mean() -> None:
    arrays = [np.random.default_rng(k).normal(size=(4, 5)) for k in range(3)]
    merged = run("ram-plus", arrays, epsilon=0.0, gain=1.0, clip=0.2)
    np.testing.assert_allclose(merged, np.mean(arrays, axis=0))


def test_magmax_takes_the_largest_change_and_the_last_of_equals() -> None:
    arrays = sparse()
    expected = [max(reversed(column), key=abs) for column in zip(*(each.flat for each in arrays))]
    np.testing.assert_array_equal(run("magmax", arrays).flat, expected)
    np.testing.assert_array_equal(run("magmax", [np.array([1.0, -2.0]), np.array([-1.0, 2.0])]), [-1.0, 2.0])


@pytest.mark.parametrize("task", [0, 3])
def test_emr_recovers_a_task_by_its_signs_and_its_size(task: int) -> None:
    arrays = sparse()
    unified, own = [], []
    for column in zip(*(each.flat for each in arrays)):
        sign = 1 if sum(column) > 0 else -1
        unified.append(sign * max(max(sign * value, 0) for value in column))
        own.append(unified[-1] if sign * column[task] > 0 else 0.0)
    scale = np.abs(arrays[task]).sum() / np.abs(own).sum()
    np.testing.assert_allclose(run("emr", arrays, task=task).flat, scale * np.array(own))


def test_emr_of_one_task_among_zeros_is_that_task() -> None:
    arrays = [sparse()[0], np.zeros((9, 31))]
    np.testing.assert_allclose(run("emr", arrays, task=0), arrays[0])
    assert not run("emr", arrays, task=1).any()
    with pytest.raises(RecipeError, match="task is 2, expected a position from 0 to 1"):
        run("emr", arrays, task=2)
