"""`plane` and `chain` on real models and real digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from curve.conftest import ALONE, few

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import CompatibilityError, RecipeError
from soupkit.events import Event, Table, silent
from soupkit.jobs.curves.chain import chain
from soupkit.jobs.curves.plane import _short, plane
from soupkit.jobs.curves.point import curve_point
from soupkit.jobs.judge.evaluate import evaluate
from soupkit.jobs.merge.interpolate import merge_interpolate
from soupkit.manifest import Manifest
from soupkit.recipe.curve import Chain, CurvePoint, Plane
from soupkit.recipe.evaluate import Evaluate
from soupkit.recipe.merge import MergeInterpolate
from soupkit.report.curves import contour_levels

FAST = few(jobs=1, train=False)


def test_the_plane_of_a_curve(curve_directory: Path, ends: tuple[str, str], tmp_path: Path) -> None:
    point = tmp_path / "point"
    curve_point(CurvePoint(curve=str(curve_directory), at=0.25, out=point, bn="average"), ALONE, silent)
    recipe = Plane(
        refs=(str(curve_directory),),
        project=(str(point),),
        out=tmp_path / "plane",
        num_points=3,
        margin=0.0,
        weight_decay=0.01,
        **FAST,
    )
    manifest = plane(recipe, ALONE, silent)
    assert (tmp_path / "plane" / "plane.png").stat().st_size > 10_000
    with np.load(tmp_path / "plane" / "plane.npz") as found:
        assert found["te_err"].shape == (3, 3)
        corners = found["bend_coordinates"]
        assert corners[0] == pytest.approx((0, 0))
        np.testing.assert_allclose(found["curve_coordinates"][[0, -1]], corners[[0, 2]], atol=1e-9)
        quarter = np.array([9, 6, 1]) / 16 @ corners
        place = manifest["notes"]["projections"][str(point)]
        assert (place["x"], place["y"]) == pytest.approx(tuple(quarter), rel=1e-4)
        assert place["distance"] == pytest.approx(0, abs=1e-2)
        assert corners[1][0] > 0  # so the lower left corner of a grid without margin is the first checkpoint
        first = evaluate(Evaluate(refs=(ends[0],), **few()), ALONE, silent)["metrics"]["test"]
        assert found["te_nll"][0, 0] == pytest.approx(first["nll"]["value"], rel=1e-6)
        squares = sum(
            float(np.square(tensor.astype(np.float64)).sum())
            for name, tensor in Checkpoint(Path(ends[0])).items()
            if not name.endswith(("mean", "var", "tracked"))
        )
        assert found["te_loss"][0, 0] - found["te_nll"][0, 0] == pytest.approx(0.005 * squares)
    assert manifest["metrics"]["test"]["nll_min"]["num_examples"] == 40


def test_a_plane_needs_three_checkpoints_off_a_line(ends: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="2 checkpoints, expected three"):
        plane(Plane(refs=ends, out=tmp_path / "x", **FAST), ALONE, silent)
    middle = tmp_path / "middle"
    merge_interpolate(MergeInterpolate(refs=ends, at=(0.5,), out=middle), ALONE, silent)
    with pytest.raises(CompatibilityError, match="one line"):
        plane(Plane(refs=(ends[0], str(middle), ends[1]), out=tmp_path / "x", **FAST), ALONE, silent)
    assert not (tmp_path / "x").exists()


def test_a_dry_run_scores_nothing(curve_directory: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    recipe = Plane(refs=(str(curve_directory),), out=tmp_path / "x", dry_run=True, **FAST)
    assert plane(recipe, ALONE, events.append)["plan"]["points"] == 441
    assert [type(event) for event in events] == [Table]
    assert list(tmp_path.iterdir()) == []


def test_a_chain_goes_through_its_checkpoints(
    ends: tuple[str, str], curve_directory: Path, tmp_path: Path
) -> None:
    refs = (*ends, str(curve_directory / "bend-1"))
    manifest = chain(Chain(refs=refs, out=tmp_path / "chain", num_points=2, **FAST), ALONE, silent)
    with np.load(tmp_path / "chain" / "curve.npz") as found:
        np.testing.assert_allclose(found["ts"], [0, 0.5, 1])
        metrics = evaluate(Evaluate(refs=refs, **few()), ALONE, silent)["metrics"]
        expected = [metrics[ref]["test"]["nll"]["value"] for ref in refs]
        np.testing.assert_allclose(found["te_nll"], expected, rtol=1e-6)
        assert "tr_nll" not in found
    assert Manifest.read(tmp_path / "chain").command == "chain"
    assert len(manifest["inputs"]) == 3
    with pytest.raises(RecipeError, match="at least two"):
        chain(Chain(refs=refs[:1], out=tmp_path / "x", **FAST), ALONE, silent)


def test_contour_levels_rise_in_equal_ratios_to_the_cap() -> None:
    levels = contour_levels(np.array([[1.0, 2.0], [9.0, 3.0]]), cap=5.0, num=4)
    assert levels[0] == 1
    assert levels[-1] == 5
    steps = np.array(levels[1:]) - 1
    np.testing.assert_allclose(steps[1:] / steps[:-1], steps[1] / steps[0])
    assert contour_levels(np.array([[1.0, 2.0]]), cap=5.0)[-1] == 2
    assert contour_levels(np.ones((2, 2)), cap=5.0) == []


def test_labels_are_as_short_as_tells_them_apart() -> None:
    assert _short(["runs/a", "runs/b"]) == ["a", "b"]
    assert _short(["x/seed-0/base", "x/seed-1/base"]) == ["seed-0/base", "seed-1/base"]
    assert _short(["same", "same"]) == ["same", "same"]
