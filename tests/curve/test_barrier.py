"""Barriers of curves that are known."""

from __future__ import annotations

import numpy as np
import pytest

from soupkit.curve.barrier import barrier, excess


def test_the_barrier_of_a_parabola() -> None:
    """L(λ) = λ (1 − λ) + λ: the straight part is no barrier, the rest is highest in the middle."""
    at = np.linspace(0, 1, 5)
    values = np.repeat((at * (1 - at) + at)[:, None], 7, axis=1)
    found = barrier(values, at.tolist())
    assert found.height == pytest.approx(0.25)
    assert (found.at, found.standard_error, found.num_examples) == (0.5, pytest.approx(0.0, abs=1e-12), 7)


def test_a_valley_is_no_barrier() -> None:
    values = np.array([[1.0, 1.0], [0.2, 0.0], [1.0, 1.0]])
    assert barrier(values, [0, 0.5, 1]).height == 0.0


def test_its_standard_error_is_of_paired_differences() -> None:
    random = np.random.default_rng(0)
    values = random.exponential(size=(3, 50)) + np.array([0, 3, 0])[:, None]
    differences = values[1] - 0.5 * (values[0] + values[2])
    found = barrier(values, [0, 0.5, 1])
    assert found.height == pytest.approx(differences.mean())
    assert found.standard_error == pytest.approx(differences.std(ddof=1) / np.sqrt(50))


def test_a_barrier_of_errors_that_no_example_shows_has_an_error() -> None:
    right = barrier(np.zeros((3, 40)), (0.0, 0.5, 1.0), shares=True)
    assert (right.height, right.standard_error) == (0.0, pytest.approx(1 / 82))


def test_the_barrier_is_measured_from_the_line_between_the_ends() -> None:
    ts = np.array([0.0, 0.25, 1.0])
    assert excess(np.array([1.0, 4.0, 5.0]), ts).max() == pytest.approx(4 - (0.75 * 1 + 0.25 * 5))
    assert excess(np.array([1.0, 0.0, 5.0]), ts).max() == 0
