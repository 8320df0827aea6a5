"""Lengths and planes from inner products, against the same computed with whole vectors in float64."""

from __future__ import annotations

import numpy as np
import pytest

from soupkit.curve.curve import Curve, points
from soupkit.curve.geometry import CHUNK, Plane, geometry, weight_names
from soupkit.errors import CompatibilityError

SHAPES = {"a.weight": (7, 11), "b.bias": (3,), "large": (CHUNK + 17,)}


def checkpoints(num: int, *, close: float = 1.0, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Random tensors around a common far point."""
    rng = np.random.default_rng(seed)
    far = {name: 5 * rng.standard_normal(shape) for name, shape in SHAPES.items()}
    return [
        {
            name: (far[name] + close * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        for _ in range(num)
    ]


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([tensors[name].astype(np.float64).ravel() for name in SHAPES])


def test_distances_and_norms_are_those_of_the_vectors() -> None:
    models = checkpoints(3, close=1e-3)
    vectors, curve = np.stack([flat(model) for model in models]), Curve("bezier", 3)
    found = geometry(models, SHAPES)
    coefficients = np.stack([curve.coefficients(t) for t in points(9)])
    line = coefficients @ vectors
    expected = np.linalg.norm(np.diff(line, axis=0), axis=1)
    steps = found.steps(coefficients)
    assert steps[0] == 0
    np.testing.assert_allclose(steps[1:], expected, rtol=1e-8)
    assert found.distance(coefficients[1], coefficients[7]) == pytest.approx(
        np.linalg.norm(line[7] - line[1])
    )
    for row, point in zip(coefficients, line):
        assert found.squared_norm(row) == pytest.approx(point @ point, rel=1e-12)


def test_batch_norm_statistics_and_counters_are_no_weights() -> None:
    model = {"conv.weight": np.zeros(2, np.float32), "bn.running_mean": np.zeros(2, np.float32)}
    model |= {
        "bn.running_var": np.ones(2, np.float32),
        "bn.num_batches_tracked": np.array(3),
        "bn.weight": np.ones(2),
    }
    assert weight_names(model) == ["conv.weight", "bn.weight"]


def test_the_plane_has_orthonormal_axes_through_its_checkpoints() -> None:
    models = checkpoints(3)
    w = np.stack([flat(model) for model in models])
    plane = Plane.through(geometry(models, SHAPES))
    u = (w[2] - w[0]) / np.linalg.norm(w[2] - w[0])
    v = w[1] - w[0] - ((w[1] - w[0]) @ u) * u
    v /= np.linalg.norm(v)
    for x, y in ((0.0, 0.0), (3.0, -2.0), (100.0, 400.0)):
        np.testing.assert_allclose(plane.coefficients(x, y) @ w, w[0] + x * u + y * v, rtol=1e-9, atol=1e-9)
        assert plane.place(plane.coefficients(x, y)) == pytest.approx((x, y))
    corners = [plane.place(row) for row in np.eye(3)]
    assert corners[0] == pytest.approx((0, 0))
    assert corners[1] == pytest.approx((float((w[1] - w[0]) @ u), float((w[1] - w[0]) @ v)))
    assert corners[2] == pytest.approx((float(np.linalg.norm(w[2] - w[0])), 0), abs=1e-9)


def test_projection_is_the_nearest_point_of_the_plane() -> None:
    models = checkpoints(4)
    w = np.stack([flat(model) for model in models])
    found = geometry(models, SHAPES)
    plane = Plane.through(found)
    x, y = plane.project(found.gram[3, 1:3])
    basis = np.stack([w[1] - w[0], w[2] - w[0]], 1)
    solution = np.linalg.lstsq(basis, w[3] - w[0], rcond=None)[0]
    nearest = w[0] + basis @ solution
    np.testing.assert_allclose(plane.coefficients(x, y) @ w[:3], nearest, rtol=1e-8, atol=1e-8)


def test_the_grid_covers_the_checkpoints_and_a_margin() -> None:
    plane = Plane(width=10.0, along=-5.0, height=4.0)
    xs, ys = plane.grid(4, 0.2)
    assert (xs[0], xs[-1]) == pytest.approx((-8, 13))
    assert (ys[0], ys[-1]) == pytest.approx((-0.8, 4.8))
    assert len(xs) == len(ys) == 4
    xs, ys = plane.grid(2, 0.0, others=[(20.0, 1.0), (0.0, -3.0)])
    assert (xs.tolist(), ys.tolist()) == ([-5, 20], [-3, 4])


def test_three_checkpoints_on_a_line_make_no_plane() -> None:
    a, b = checkpoints(2)
    middle = {name: ((a[name].astype(np.float64) + b[name]) / 2) for name in SHAPES}
    for third in (middle, a):
        with pytest.raises(CompatibilityError, match="one line"):
            Plane.through(geometry([a, third, b], SHAPES))
