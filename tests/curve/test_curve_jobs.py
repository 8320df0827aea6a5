"""`curve fit`, `curve point` and `curve evaluate` on real models and real digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from curve.conftest import ALONE, FEW, few

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.reference import open_references
from soupkit.cli.app import run_command_line
from soupkit.curve.curve import points
from soupkit.errors import (
    CheckpointError,
    CompatibilityError,
    RecipeError,
    ReferenceError,
    SoupkitError,
    TaskError,
)
from soupkit.events import Advanced, Event, Table, Told, silent
from soupkit.jobs.curves.evaluate import curve_evaluate
from soupkit.jobs.curves.fit import curve_fit, state_path
from soupkit.jobs.curves.point import curve_point
from soupkit.jobs.files.verify import reproduce, verify
from soupkit.jobs.judge.evaluate import evaluate
from soupkit.manifest import Manifest
from soupkit.recipe.curve import CurveEvaluate, CurveFit, CurvePoint
from soupkit.recipe.evaluate import Evaluate
from soupkit.recipe.inspect import Reproduce, Verify
from soupkit.stages.inputs.curve import open_curve
from soupkit.stages.scoring import points as scored_points

Ends = tuple[str, str]


def fit(ends: Ends, out: Path, report: Any = silent, **values: Any) -> dict[str, Any]:
    return curve_fit(CurveFit(refs=ends, out=out, **few(epochs=2, lr=0.01) | values), ALONE, report)


def point(directory: Path, at: float, out: Path, **values: Any) -> Path:
    curve_point(CurvePoint(curve=str(directory), at=at, out=out, **few(**values)), ALONE, silent)
    return out


def same(a: Path, b: Path) -> bool:
    return content_hash(Checkpoint(a)) == content_hash(Checkpoint(b))


def test_the_ends_of_the_curve_are_the_checkpoints_bit_for_bit(
    ends: Ends, curve_directory: Path, tmp_path: Path
) -> None:
    assert same(curve_directory / "bend-0", Path(ends[0]))
    assert same(curve_directory / "bend-2", Path(ends[1]))
    assert same(point(curve_directory, 0.0, tmp_path / "start"), Path(ends[0]))
    assert same(point(curve_directory, 1.0, tmp_path / "end"), Path(ends[1]))
    middle, trained = Checkpoint(curve_directory / "bend-1"), "fc.weight"
    line = (Checkpoint(Path(ends[0]))[trained] + Checkpoint(Path(ends[1]))[trained]) / 2
    assert np.abs(middle[trained] - line).max() > 1e-3


def test_a_curve_is_a_checkpoint_family(curve_directory: Path) -> None:
    curve, bends, manifest = open_curve(str(curve_directory))
    assert (curve.kind, curve.num_bends) == ("bezier", 3)
    assert [bend.path.name for bend in bends] == ["bend-0", "bend-1", "bend-2"]
    assert manifest.notes["bends"] == manifest.notes["members"]
    assert len(manifest.notes["loss"]) == 2
    assert len(open_references([str(curve_directory)])) == 3
    assert len(manifest.inputs) == 2
    trained = [Manifest.read(bend.directory).notes.get("data") for bend in bends]
    assert trained == [None, manifest.notes["data"], None]
    verify(Verify(directory=curve_directory), ALONE, silent)
    assert timm.create_model(f"local-dir:{curve_directory / 'bend-1'}", pretrained=True).num_classes == 10


def test_the_written_point_is_the_live_one(curve_directory: Path, tmp_path: Path) -> None:
    """The scorer of a path and the writer of a point agree in every bit of every tensor, statistics
    included."""
    curve, bends, _ = open_curve(str(curve_directory))
    recipe = CurveEvaluate(curve=str(curve_directory), out=tmp_path / "x", **FEW)
    scorer = scored_points.PointScorer(bends, recipe, ALONE)
    live = scorer.score(curve.mixture(0.3, [bend.reference for bend in bends]))
    written = Checkpoint(point(curve_directory, 0.3, tmp_path / "point"))
    for name, tensor in scorer.task.tensors().items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)
    manifest = evaluate(Evaluate(refs=(str(tmp_path / "point"),), **FEW), ALONE, silent)
    for split in ("held_out", "test"):
        for metric in ("top1", "nll"):
            found, expected = manifest["metrics"][split][metric], live[split][metric]
            assert found["num_examples"] == expected["num_examples"]
            assert found["value"] == pytest.approx(expected["value"], rel=1e-6)


def test_a_point_is_reproduced(curve_directory: Path, tmp_path: Path) -> None:
    for name, at in (("inner", 0.6), ("end", 1.0)):
        out = point(curve_directory, at, tmp_path / name)
        manifest = Manifest.read(out)
        assert manifest.notes["at"] == at
        assert manifest.mixture is not None
        reproduce(Reproduce(directory=out, out=tmp_path / f"{name}-again"), ALONE, silent)


def test_batch_norm_needs_data_between_the_ends_only(curve_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="none is named"):
        point(curve_directory, 0.5, tmp_path / "a", data=None)
    point(curve_directory, 0.0, tmp_path / "b", data=None)
    averaged = Checkpoint(point(curve_directory, 0.5, tmp_path / "c", data=None, bn="average"))
    bends = [
        Checkpoint(curve_directory / f"bend-{j}")["bn1.running_mean"].astype(np.float64) for j in range(3)
    ]
    expected = 0.25 * bends[0] + 0.5 * bends[1] + 0.25 * bends[2]
    np.testing.assert_allclose(averaged["bn1.running_mean"], expected, rtol=1e-6, atol=1e-7)


class Stop(Exception):
    """Ends a fit from its own report, as a kill would."""


def test_an_interrupted_fit_continues_with_the_same_bits(ends: Ends, tmp_path: Path) -> None:
    options = {"epochs": 3, "kind": "polychain", "fix_end": False, "momentum": 0.8}
    fit(ends, tmp_path / "whole", **options)
    num_updates = 0

    def stop(event: Event) -> None:
        nonlocal num_updates
        num_updates += event.by if isinstance(event, Advanced) else 0
        if num_updates == 5:  # in the second of three epochs of three batches
            raise Stop

    with pytest.raises(Stop):
        fit(ends, tmp_path / "killed", stop, **options)
    assert not (tmp_path / "killed").exists()
    assert state_path(tmp_path / "killed").is_file()
    events: list[Event] = []
    fit(ends, tmp_path / "killed", events.append, **options)
    assert any(
        isinstance(event, Told) and "continues after epoch 1 of 3" in event.message for event in events
    )
    for bend in ("bend-1", "bend-2"):
        assert same(tmp_path / "whole" / bend, tmp_path / "killed" / bend)
    assert not state_path(tmp_path / "killed").exists()
    losses = [Manifest.read(tmp_path / name).notes["loss"] for name in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_the_state_of_another_fit_is_not_continued(ends: Ends, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Advanced) and "epoch 2" in event.note:
            raise Stop

    with pytest.raises(Stop):
        fit(ends, tmp_path / "out", stop)
    events: list[Event] = []
    fit(ends, tmp_path / "out", events.append, lr=0.02)
    assert not any(isinstance(event, Told) and "continues" in event.message for event in events)
    state_path(tmp_path / "other").write_bytes(b"no state at all")
    with pytest.raises(CheckpointError, match="cannot be read"):
        fit(ends, tmp_path / "other")


def test_what_cannot_be_fitted_is_refused_before_training(ends: Ends, tmp_path: Path, save: Any) -> None:
    other = save("other", {"weight": np.zeros((2, 2), np.float32)})
    cases: list[tuple[type[SoupkitError], dict[str, Any]]] = [
        (RecipeError, {"refs": (ends[0],)}),
        (CompatibilityError, {"refs": (ends[0], str(other))}),
        (RecipeError, {"refs": ends, "batch_size": 1000}),
        (RecipeError, {"refs": ends, "optimizer": "sdg"}),
        (TaskError, {"refs": ends, "data": "glyphs-of-old"}),
    ]
    for kind, values in cases:
        with pytest.raises(kind):
            curve_fit(CurveFit(out=tmp_path / "x", epochs=1, **few() | values), ALONE, silent)
    with pytest.raises(RecipeError, match="nothing to train"):
        CurveFit(refs=ends, out=tmp_path / "x", num_bends=2, **FEW)
    assert not (tmp_path / "x").exists()


def test_a_dry_run_trains_nothing(ends: Ends, tmp_path: Path) -> None:
    events: list[Event] = []
    plan = fit(ends, tmp_path / "out", events.append, dry_run=True)["plan"]
    assert plan["updates"] == 2 * 3
    assert [type(event) for event in events] == [Table]
    assert list(tmp_path.iterdir()) == []


def evaluation(directory: Path, out: Path, report: Any = silent, **values: Any) -> dict[str, Any]:
    defaults = few(num_points=4, jobs=1)
    return curve_evaluate(CurveEvaluate(curve=str(directory), out=out, **defaults | values), ALONE, report)


def test_the_numbers_of_a_curve(ends: Ends, curve_directory: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    manifest = evaluation(curve_directory, tmp_path / "scores", events.append)
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {
        "curve.npz",
        "curve.json",
        "curve.png",
        "soupkit.json",
    }
    with np.load(tmp_path / "scores" / "curve.npz") as found:
        np.testing.assert_allclose(found["ts"], points(4))
        singles = evaluate(Evaluate(refs=ends, **FEW), ALONE, silent)["metrics"]
        for place, end in ((0, ends[0]), (-1, ends[1])):
            for prefix, split in (("ho", "held_out"), ("te", "test")):
                nll = singles[end][split]["nll"]["value"]
                assert found[f"{prefix}_nll"][place] == pytest.approx(nll, rel=1e-6)
                assert found[f"{prefix}_acc"][place] == pytest.approx(
                    100 * singles[end][split]["top1"]["value"]
                )
        weights = [Checkpoint(curve_directory / f"bend-{j}") for j in range(3)]
        names = [name for name in weights[0] if not name.endswith(("mean", "var", "tracked"))]
        vectors = np.stack(
            [np.concatenate([w[name].astype(np.float64).ravel() for name in names]) for w in weights]
        )
        middle = np.array([4, 4, 1]) / 9 @ vectors  # (1 − t)², 2t(1 − t), t² at t = 1/3
        assert found["dl"][1] == pytest.approx(np.linalg.norm(middle - vectors[0]))
        penalty = 0.5 * 5e-4 * middle @ middle
        assert found["tr_loss"][1] - found["tr_nll"][1] == pytest.approx(penalty)
        assert manifest["metrics"]["test"]["err_max"]["value"] == found["te_err"].max()
        assert manifest["notes"]["length"] == pytest.approx(found["dl"].sum())
    table = next(event for event in events if isinstance(event, Table))
    assert len(table.rows) == 9


def test_points_are_remembered_and_only_new_ones_are_scored(
    curve_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[list[float]] = []
    plain = scored_points.PointScorer.score

    def counting(self: Any, mixture: Any) -> Any:
        if len(scored) == 2:
            raise Stop
        scored.append(mixture.matrix[:, 0].tolist())
        return plain(self, mixture)

    monkeypatch.setattr(scored_points.PointScorer, "score", counting)
    with pytest.raises(Stop):
        evaluation(curve_directory, tmp_path / "a", num_points=3)
    assert not (tmp_path / "a").exists()
    scored = [[]]
    events: list[Event] = []
    evaluation(curve_directory, tmp_path / "a", events.append, num_points=3)
    assert len(scored) == 2  # one of three points was left
    assert any(isinstance(event, Told) and "2 of 3 points" in event.message for event in events)


def test_processes_find_what_one_process_finds(
    curve_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for jobs in (1, 2):
        # The second finds no place to remember anything: points come back from the processes themselves.
        monkeypatch.setenv("SOUPKIT_CACHE", str(tmp_path / "cache") if jobs == 1 else "/dev/null")
        found.append(evaluation(curve_directory, tmp_path / str(jobs), num_points=3, jobs=jobs)["metrics"])
    assert found[0] == found[1]


def test_a_directory_that_is_no_curve(ends: Ends, tmp_path: Path) -> None:
    for reference in (ends[0], str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(ReferenceError, match="holds no curve"):
            open_curve(reference)


def test_the_commands_from_the_command_line(
    ends: Ends, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.asdict(CurveFit(refs=ends, out=tmp_path / "c", **FEW))
    options = [f"--{name.replace('_', '-')}={recipe[name]}" for name in FEW]
    line = ["curve", "fit", *ends, *options, "--epochs=1", f"--out={tmp_path / 'c'}", "--quiet"]
    assert run_command_line(line) == 0
    assert run_command_line(["curve", "point", str(tmp_path / "c"), "--at=2", "--out=x"]) == 2
    assert "expected 0 to 1" in capsys.readouterr().err


def test_with_align_the_curve_ends_at_the_same_function(ends: Ends, tmp_path: Path) -> None:
    manifest = fit(ends, tmp_path / "curve", align=True, epochs=1)
    _, bends, _ = open_curve(str(tmp_path / "curve"))
    assert same(tmp_path / "curve" / "bend-0", Path(ends[0]))
    assert not same(tmp_path / "curve" / "bend-2", Path(ends[1]))
    refs = (ends[1], bends[2].reference)
    metrics = evaluate(Evaluate(refs=refs, **FEW), ALONE, silent)["metrics"]
    for split in ("held_out", "test"):
        assert metrics[refs[0]][split]["top1"] == metrics[refs[1]][split]["top1"]
        assert metrics[refs[0]][split]["nll"]["value"] == pytest.approx(
            metrics[refs[1]][split]["nll"]["value"]
        )
    assert manifest["notes"]["alignment"]["to"] == ends[0]
    away = [
        np.linalg.norm(Checkpoint(Path(ends[0]))["fc.weight"] - bend["fc.weight"]) for bend in (bends[2],)
    ]
    assert away[0] < np.linalg.norm(
        Checkpoint(Path(ends[0]))["fc.weight"] - Checkpoint(Path(ends[1]))["fc.weight"]
    )
