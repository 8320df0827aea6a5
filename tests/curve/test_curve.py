"""The two families of curves, against their definitions in other words."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom

from soupkit.curve.curve import Curve, points
from soupkit.errors import CheckpointError

KINDS = ("bezier", "polychain")


@pytest.mark.parametrize("num_bends", [2, 3, 4, 7])
@pytest.mark.parametrize("t", [0.0, 0.1, 1 / 3, 0.5, 0.77, 1.0])
def test_bezier_coefficients_are_binomial_probabilities(num_bends: int, t: float) -> None:
    expected = binom.pmf(np.arange(num_bends), num_bends - 1, t)
    np.testing.assert_allclose(Curve("bezier", num_bends).coefficients(t), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("num_bends", [2, 3, 5])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.25, 0.6, 0.75, 1.0])
def test_a_chain_interpolates_between_neighbours(num_bends: int, t: float) -> None:
    for bend in range(num_bends):
        values = np.eye(num_bends)[bend]
        expected = np.interp(t, np.linspace(0, 1, num_bends), values)
        assert Curve("polychain", num_bends).coefficients(t)[bend] == pytest.approx(expected, abs=1e-15)


def test_bezier_by_repeated_interpolation() -> None:
    """De Casteljau's construction in exact fractions."""
    t, bends = Fraction(3, 10), [Fraction(5), Fraction(-2), Fraction(7), Fraction(1)]
    level = bends
    while len(level) > 1:
        level = [(1 - t) * a + t * b for a, b in pairwise(level)]
    found = Curve("bezier", 4).coefficients(0.3) @ np.array([float(bend) for bend in bends])
    assert found == pytest.approx(float(level[0]), abs=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bends", [2, 3, 6])
def test_coefficients_sum_to_one_and_the_ends_are_exact(kind: str, num_bends: int) -> None:
    curve = Curve(kind, num_bends)  # type: ignore[arg-type]
    for t in points(31):
        assert curve.coefficients(t).sum() == pytest.approx(1, abs=1e-14)
        assert (curve.coefficients(t) >= 0).all()
    assert curve.coefficients(0.0).tolist() == np.eye(num_bends)[0].tolist()
    assert curve.coefficients(1.0).tolist() == np.eye(num_bends)[-1].tolist()


@pytest.mark.parametrize("num_bends", [2, 3, 4, 6])
def test_the_corners_of_a_chain_are_its_bends(num_bends: int) -> None:
    curve = Curve("polychain", num_bends)
    for bend, t in enumerate(points(num_bends)):
        np.testing.assert_allclose(curve.coefficients(t), np.eye(num_bends)[bend], atol=1e-15)


def test_a_point_is_a_mixture_of_the_bends() -> None:
    mixture = Curve("bezier", 3).mixture(0.25, ["a", "b", "c"])
    assert mixture.ingredients == ("a", "b", "c")
    np.testing.assert_allclose(mixture.matrix[:, 0], [0.5625, 0.375, 0.0625])
    assert Curve("bezier", 3).mixture(0.0, ["a", "b", "c"]).used() == [0]


def test_the_record_of_a_curve() -> None:
    curve = Curve("polychain", 4)
    assert Curve.from_json(curve.to_json()) == curve
    for wrong in (None, {}, {"kind": "spline", "num_bends": 3}, {"kind": "bezier", "num_bends": 1}, [3]):
        with pytest.raises(CheckpointError, match="record of a curve"):
            Curve.from_json(wrong)


def test_points_are_evenly_spread() -> None:
    assert points(5) == [0, 0.25, 0.5, 0.75, 1]
    assert points(61)[-1] == 1
