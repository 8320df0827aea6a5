"""`fge` and `ensemble` on real models and real digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curve.conftest import ALONE, few

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.reference import open_references
from soupkit.errors import RecipeError
from soupkit.events import Event, Scored, Table, Told, silent
from soupkit.jobs.curves import fge as fge_module
from soupkit.jobs.curves.fge import fge
from soupkit.jobs.files.verify import verify
from soupkit.jobs.judge.ensemble import ensemble
from soupkit.jobs.judge.evaluate import evaluate
from soupkit.jobs.merge.uniform import merge_uniform
from soupkit.manifest import Manifest
from soupkit.recipe.curve import Ensemble, Fge
from soupkit.recipe.evaluate import Evaluate
from soupkit.recipe.inspect import Verify
from soupkit.recipe.merge import MergeUniform
from soupkit.task.images.task import ImageTask


def recipe_of(base: str, out: Path, **values: Any) -> Fge:
    return Fge(base=base, out=out, **few(epochs=4, cycle=2, lr_1=0.02, lr_2=0.002) | values)


@pytest.fixture(scope="module")
def collected(ends: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    events: list[Event] = []
    out = tmp_path_factory.mktemp("fge") / "fge"
    fge(recipe_of(ends[0], out), ALONE, events.append)
    return out, events


def test_members_are_checkpoints_and_their_scores_are_those_of_what_was_written(
    collected: tuple[Path, list[Event]],
) -> None:
    out, events = collected
    manifest = Manifest.read(out)
    assert manifest.notes["members"] == ["snapshot-000", "snapshot-001"]
    assert [step["epoch"] for step in manifest.notes["growth"]] == [1, 3]
    assert [look["epoch"] for look in manifest.notes["epochs"]] == [0, 1, 2, 3, 4]
    distances = [look["distance"] for look in manifest.notes["epochs"]]
    assert distances[0] == 0
    assert min(distances[1:]) > 0
    assert (out / "fge.png").stat().st_size > 10_000
    for directory in (out, out / "snapshot-000"):
        verify(Verify(directory=directory, inputs=True), ALONE, silent)
        [entry] = Manifest.read(directory).inputs
        assert (directory / entry["path"]).resolve() == Path(entry["reference"]).resolve()
    refs = tuple(str(out / name) for name in manifest.notes["members"])
    scored = evaluate(Evaluate(refs=refs, ensemble="softmax", **few()), ALONE, silent)["metrics"]
    for ref, step in zip(refs, manifest.notes["growth"]):
        assert step["single"] == scored[ref]
        member = Manifest.read(Path(ref))
        assert (member.metrics, member.notes["data"]) == (scored[ref], manifest.notes["data"])
    for split in ("held_out", "test"):
        last, both = manifest.metrics["softmax"][split], scored["ensemble of softmax"][split]
        assert last["top1"] == both["top1"]
        assert last["nll"]["value"] == pytest.approx(both["nll"]["value"], rel=1e-5)
    assert len([event for event in events if isinstance(event, Scored)]) == 4


def test_the_members_make_a_soup(collected: tuple[Path, list[Event]], tmp_path: Path) -> None:
    out, _ = collected
    assert [each.path.name for each in open_references([str(out)])] == ["snapshot-000", "snapshot-001"]
    merge_uniform(MergeUniform(refs=(str(out),), out=tmp_path / "soup"), ALONE, silent)
    a, b = (Checkpoint(out / f"snapshot-{k:03d}")["fc.weight"].astype(np.float64) for k in range(2))
    np.testing.assert_allclose(Checkpoint(tmp_path / "soup")["fc.weight"], (a + b) / 2, rtol=1e-6, atol=1e-8)


def test_the_same_seed_gives_the_same_members(
    ends: tuple[str, str],
    collected: tuple[Path, list[Event]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fge_module, "cycle_plot", lambda path, *_arguments, **_options: path.touch())
    fge(recipe_of(ends[0], tmp_path / "again"), ALONE, silent)
    fge(recipe_of(ends[0], tmp_path / "other", seed=1, epochs=1), ALONE, silent)
    first, again, other = (
        content_hash(Checkpoint(folder / "snapshot-000"))
        for folder in (collected[0], *map(tmp_path.joinpath, ("again", "other")))
    )
    assert first == again != other


@pytest.mark.parametrize(("schedule", "epochs"), [("snapshot", [2, 4]), ("swa", [2, 4])])
def test_other_schedules_keep_the_end_of_a_cycle(
    ends: tuple[str, str], tmp_path: Path, schedule: str, epochs: list[int]
) -> None:
    plan = fge(recipe_of(ends[0], tmp_path / "x", schedule=schedule, dry_run=True), ALONE, silent)["plan"]
    assert plan["after epochs"] == ", ".join(map(str, epochs))
    assert plan["members"] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cycle": 3}, "even"),
        ({"lr_1": 0.01, "lr_2": 0.05}, "lr_1 >= lr_2"),
        ({"cycle": 8, "epochs": 3}, "first member comes after 4"),
        ({"momentum": 2.0}, "momentum"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of("base", Path("out"), **values)


def test_an_ensemble_is_that_of_evaluate_and_each_model_is_run_once(
    ends: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    plain = ImageTask.predict

    def counting(self: Any, examples: Any) -> Any:
        loads.append(len(examples))
        return plain(self, examples)

    events: list[Event] = []
    monkeypatch.setattr(ImageTask, "predict", counting)
    first = ensemble(Ensemble(refs=ends, out=tmp_path / "scores", **few()), ALONE, events.append)
    assert len(loads) == 4
    again = ensemble(Ensemble(refs=ends, **few()), ALONE, events.append)
    assert len(loads) == 4
    assert any(
        isinstance(event, Told) and "2 checkpoints were remembered" in event.message for event in events
    )
    assert first["metrics"] == again["metrics"]
    for kind in ("logits", "softmax"):
        scored = evaluate(Evaluate(refs=ends, ensemble=kind, **few()), ALONE, silent)["metrics"]  # type: ignore[arg-type]
        for split in ("held_out", "test"):
            found, expected = first["metrics"][kind][split], scored[f"ensemble of {kind}"][split]
            assert found["top1"] == expected["top1"]
            assert found["nll"]["value"] == pytest.approx(expected["nll"]["value"], rel=1e-5)
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {"scores.json", "soupkit.json"}
    assert len(next(event for event in events if isinstance(event, Table)).rows) == 6


def test_held_out_alone_chooses_the_best_single_model(ends: tuple[str, str]) -> None:
    found = ensemble(Ensemble(refs=ends, **few()), ALONE, silent)
    singles = found["notes"]["singles"]
    best = max(ends, key=lambda end: singles[end]["held_out"]["top1"]["value"])
    assert found["notes"]["best_single"] == best
    assert found["metrics"]["best_single"] == singles[best]


def test_remembered_predictions_are_of_these_weights_and_data(ends: tuple[str, str], tmp_path: Path) -> None:
    """Other weights under the same name, and another split, are not what was remembered."""
    copy = tmp_path / "model"
    copy.symlink_to(ends[0])
    first = ensemble(Ensemble(refs=(str(copy),), **few()), ALONE, silent)["metrics"]["logits"]
    copy.unlink()
    copy.symlink_to(ends[1])
    assert ensemble(Ensemble(refs=(str(copy),), **few()), ALONE, silent)["metrics"]["logits"] != first
    moved = ensemble(Ensemble(refs=(ends[0],), **few(split_seed=1)), ALONE, silent)["metrics"]["logits"]
    assert moved != first
