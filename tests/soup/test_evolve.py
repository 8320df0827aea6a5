"""CMA-ES over coefficients, on functions whose optimum is known."""

from __future__ import annotations

import numpy as np
import pytest

from soupkit.events import Event, Warned
from soupkit.soup.evolve import coefficients_of, evolve
from soupkit.task.score import Score


def test_zero_is_the_uniform_soup_and_constraints_hold() -> None:
    point = np.random.default_rng(0).standard_normal(12)
    for constraint in ("softmax", "sum", "none"):
        np.testing.assert_allclose(coefficients_of(np.zeros(12), 4, constraint), 0.25)  # type: ignore[arg-type]
    inside = coefficients_of(point, 4, "softmax")
    assert inside.min() > 0
    np.testing.assert_allclose(inside.sum(0), 1)
    on_plane = coefficients_of(point, 4, "sum")
    assert on_plane.min() < 0
    np.testing.assert_allclose(on_plane.sum(0), 1)
    assert np.abs(coefficients_of(point, 4, "none").sum(0) - 1).max() > 0.05


@pytest.mark.parametrize(
    ("constraint", "target"),
    [("softmax", [0.7, 0.2, 0.1]), ("sum", [1.4, -0.6, 0.2]), ("none", [0.5, 0.1, 0.9])],
)
@pytest.mark.parametrize("direction", ["max", "min"])
def test_the_optimum_is_found(constraint: str, target: list[float], direction: str) -> None:
    sign = -1 if direction == "max" else 1

    def score(coefficients: np.ndarray) -> Score:
        distance = float(((coefficients[:, 0] - target) ** 2).sum())
        return Score("distance", sign * distance, None, None)

    found = evolve(score, 3, 1, constraint=constraint, direction=direction, evaluations=400)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.coefficients_KB[:, 0], target, atol=0.02)
    assert found.score.value == pytest.approx(0, abs=1e-3)
    assert sign * found.history[-1] <= sign * found.history[0]
    assert found.num_evaluations == 400 or len(found.history) < 100


def test_the_same_seed_is_the_same_search_and_nan_is_the_worst() -> None:
    seen: list[list[float]] = []
    for _ in range(2):
        points: list[float] = []

        def score(coefficients: np.ndarray, points: list[float] = points) -> Score:
            points.append(float(coefficients[0, 0]))
            return Score("x", float("nan") if len(points) % 3 == 0 else float(coefficients[0, 0]), None, None)

        found = evolve(score, 3, 1, evaluations=40, seed=4)
        assert np.isfinite(found.score.value)
        seen.append(points)
    assert seen[0] == seen[1]
    other: list[float] = []
    evolve(
        lambda c: (other.append(float(c[0, 0])), Score("x", 0.0, None, None))[1], 3, 1, evaluations=40, seed=5
    )
    assert other != seen[0]


@pytest.mark.parametrize(
    ("evaluations", "population"), [(10, 8), (12, None), (9, 8), (4, 20), (1, 8), (2, None), (61, 7)]
)
def test_the_budget_is_kept_exactly(evaluations: int, population: int | None) -> None:
    scored: list[np.ndarray] = []

    def score(coefficients: np.ndarray) -> Score:
        scored.append(coefficients)
        return Score("x", float(coefficients[0, 0]), None, None)

    events: list[Event] = []
    found = evolve(score, 5, 1, evaluations=evaluations, population=population, report=events.append)
    assert len(scored) == found.num_evaluations == evaluations
    assert found.score.value == max(each[0, 0] for each in scored)
    np.testing.assert_allclose(scored[0], 0.2)
    too_few = evaluations < 1 + (population or 8)
    assert any(isinstance(event, Warned) and "one generation" in event.message for event in events) == too_few


def test_no_margins_are_kept() -> None:
    found = evolve(lambda c: Score("x", float(c[0, 0]), None, 9, 3, np.zeros(9)), 3, 1, evaluations=30)
    assert found.score.margins is None
    assert found.start.margins is None
