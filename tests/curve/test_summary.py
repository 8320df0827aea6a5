"""The numbers of a path, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from soupkit.curve.summary import Scored, fields, measured, metrics, summary


def entry(value: float, error: float = 0.1, num: int = 50) -> dict[str, Any]:
    return {"value": value, "standard_error": error, "num_examples": num}


def test_the_mean_over_the_length_weighs_long_steps_more() -> None:
    values, steps = np.array([1.0, 3.0, 2.0]), np.array([0.0, 1.0, 3.0])
    found = summary(values, steps)
    assert found == pytest.approx({"min": 1, "max": 3, "avg": 2, "int": (2 * 1 + 2.5 * 3) / 4})


def test_a_path_without_length_has_its_mean() -> None:
    assert summary(np.array([1.0, 3.0]), np.zeros(2))["int"] == 2


def test_what_is_measured_becomes_percent_and_gets_its_penalty() -> None:
    points = [
        {"test": {"nll": entry(0.5), "top1": entry(0.9, 0.02)}},
        {"test": {"nll": entry(0.7), "top1": entry(1)}},
    ]
    found = measured(points, "test", np.array([0.25, 0.5]))
    np.testing.assert_allclose(found.loss, [0.75, 1.2])
    np.testing.assert_allclose(found.err, [10, 0], atol=1e-12)
    np.testing.assert_allclose(found.err_error, [2, 10])
    assert found.num_examples == 50


def test_the_published_fields_are_there() -> None:
    points = [
        {split: {"nll": entry(nll), "top1": entry(1 - nll)} for split in ("train", "held_out", "test")}
        for nll in (0.1, 0.4, 0.2)
    ]
    splits = {split: measured(points, split, np.zeros(3)) for split in ("train", "held_out", "test")}
    path = Scored(np.array([0, 0.5, 1]), np.array([0, 1.0, 1.0]), splits)
    found = fields(path)
    for prefix in ("tr", "ho", "te"):
        for measure in ("loss", "nll", "err"):
            assert found[f"{prefix}_{measure}"].shape == (3,)
            assert {f"{prefix}_{measure}_{name}" for name in ("min", "max", "avg", "int")} <= set(found)
        np.testing.assert_allclose(found[f"{prefix}_acc"], [90, 60, 80])
    assert found["te_err_max"] == pytest.approx(40)
    assert found["length"] == 2
    assert set(found) >= {"ts", "dl"}
    named = metrics(path)["test"]
    assert named["nll_max"] == {"value": 0.4, "standard_error": 0.1, "num_examples": 50}
    assert named["nll_barrier"]["value"] == pytest.approx(0.4 - 0.15)
    assert named["nll_int"]["standard_error"] is None
    assert named["err_start"]["value"] == pytest.approx(10)
    assert named["err_end"]["value"] == pytest.approx(20)
