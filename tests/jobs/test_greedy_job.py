"""`merge greedy` and `merge interpolate` on real models and real digits, as a user runs them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs.noisy import noisy_models

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest
from soupkit.stages.scoring import judges

DATA = ("--data", "digits", "--num-train", "64", "--num-held-out", "200", "--num-test", "100")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One short training run, and copies of it with more and more noise; the last is hopeless."""
    return noisy_models(tmp_path_factory.mktemp("models"), "--epochs", "4", noises=(0.02, 0.05, 1.0))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    code = run_command_line([str(argument) for argument in (*arguments, "--json", "--quiet")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out)
    return result


def greedy(
    capsys: pytest.CaptureFixture[str], models: list[Path], out: Path, *options: object
) -> dict[str, Any]:
    return run(capsys, "merge", "greedy", *models, *DATA, "--out", out, *options)


def test_the_picks_are_the_same_with_and_without_early_stop(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_stop = greedy(capsys, models, tmp_path / "a")
    monkeypatch.setenv("SOUPKIT_CACHE", str(tmp_path / "cache"))
    without = greedy(capsys, models, tmp_path / "b", "--no-early-stop")
    assert with_stop["notes"]["picks"] == without["notes"]["picks"]
    assert with_stop["outputs"]["content"] == without["outputs"]["content"]
    assert str(models[3]) not in with_stop["notes"]["picks"]
    assert with_stop["notes"]["share_of_trial_examples_evaluated"] < 1
    assert without["notes"]["share_of_trial_examples_evaluated"] == 1
    assert with_stop["metrics"]["held_out"]["top1"]["num_examples"] == 200
    assert with_stop["metrics"]["test"]["top1"]["num_examples"] == 100


def test_what_was_scored_is_what_was_written(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soup = greedy(capsys, models, tmp_path / "soup")
    assert soup["metrics"]["held_out"]["top1"]["value"] == soup["notes"]["held_out_of_soup"]["value"]
    evaluated = run(capsys, "evaluate", tmp_path / "soup", *DATA)
    assert evaluated["metrics"] == soup["metrics"]
    run(capsys, "reproduce", tmp_path / "soup", "--out", tmp_path / "again")


def test_scores_are_remembered_by_content(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = greedy(capsys, models, tmp_path / "a")
    calls = []
    original = judges.HeldOutScorer.__call__

    def counting(self: Any, mixture: Any, bar: Any) -> Any:
        calls.append(mixture.used())
        return original(self, mixture, bar)

    monkeypatch.setattr(judges.HeldOutScorer, "__call__", counting)
    again = greedy(capsys, models, tmp_path / "b")
    assert again["notes"]["picks"] == first["notes"]["picks"]
    assert not [used for used in calls if len(used) == 1]  # no single model was scored twice
    calls.clear()
    greedy(capsys, models, tmp_path / "c", "--metric", "nll")
    assert len([used for used in calls if len(used) == 1]) == 4  # another metric is another score


def test_batch_norm_can_be_kept_or_refreshed(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = greedy(capsys, models[:3], tmp_path / "keep", "--bn", "keep", "--accept", "ge", "--metric", "nll")
    first = Checkpoint(Path(kept["notes"]["picks"][0]))
    np.testing.assert_array_equal(
        Checkpoint(tmp_path / "keep")["bn1.running_mean"], first["bn1.running_mean"]
    )
    run(
        capsys,
        "merge",
        "uniform",
        *models[:3],
        "--bn",
        "refresh",
        *DATA,
        "--batch-size",
        16,
        "--out",
        tmp_path / "u",
    )
    run(capsys, "merge", "uniform", *models[:3], "--out", tmp_path / "plain")
    refreshed, plain = Checkpoint(tmp_path / "u"), Checkpoint(tmp_path / "plain")
    assert not np.array_equal(refreshed["bn1.running_var"], plain["bn1.running_var"])
    np.testing.assert_array_equal(refreshed["conv1.0.weight"], plain["conv1.0.weight"])
    again = run(capsys, "reproduce", tmp_path / "u", "--out", tmp_path / "again")
    assert again["outputs"]["content"] == Manifest.read(tmp_path / "u").outputs["content"]


SCORER = """
import struct, sys
weights = struct.unpack("<3f", open(sys.argv[1] + "/model.safetensors", "rb").read()[-12:])
print("noise before the score")
print('{"loss": %r}' % max(abs(weight - 1) for weight in weights))
"""


def test_an_external_scorer_drives_a_greedy_soup(
    save: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """w = 0.5, 1.4, 3.0; the loss is |w − 1|: 1.4 is best alone, with 0.5 it is 0.05, and 3.0 only spoils."""
    paths = [save(f"s{k}", {"w": np.full(3, value, np.float32)}) for k, value in enumerate((0.5, 1.4, 3.0))]
    (tmp_path / "score.py").write_text(SCORER)
    command = f"{shlex.quote(sys.executable)} -S {shlex.quote(str(tmp_path / 'score.py'))} {{checkpoint}}"
    options = (
        "--score-command",
        command,
        "--metric",
        "loss",
        "--direction",
        "min",
        "--out",
        tmp_path / "soup",
    )
    soup = run(capsys, "merge", "greedy", *paths, *options)
    assert soup["notes"]["picks"] == [str(paths[1]), str(paths[0])]
    assert soup["metrics"]["held_out"]["loss"]["value"] == pytest.approx(0.05)
    assert Manifest.read(tmp_path / "soup").metrics == soup["metrics"]
    np.testing.assert_allclose(Checkpoint(tmp_path / "soup")["w"], 0.95)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_failing_scorer_is_reported_with_its_output(
    save: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save("s", {"w": np.ones(3, np.float32)})
    command = (
        f'{shlex.quote(sys.executable)} -c \'import sys; print("half way"); sys.exit("no data '
        f"{{checkpoint}}\")'"
    )
    arguments = ["merge", "greedy", str(path), "--score-command", command, "--out", str(tmp_path / "soup")]
    assert run_command_line(arguments) == 1
    err = capsys.readouterr().err
    assert "half way" in err
    assert "no data" in err
    assert not (tmp_path / "soup").exists()


def test_interpolation_chooses_on_held_out(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--at", "0,0.5,1", *DATA, "--out", tmp_path / "wise")
    wise = run(capsys, "merge", "interpolate", models[3], models[0], *options)
    scores = {row["at"]: row["value"] for row in wise["notes"]["scores"]}
    assert wise["notes"]["at"] == max(scores, key=lambda at: (scores[at], -at))
    assert wise["metrics"]["held_out"]["top1"]["value"] == max(scores.values())


def test_every_point_can_be_written_without_data(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--at", "0,0.25,1", "--write", "all", "--out", tmp_path / "all")
    result = run(capsys, "merge", "interpolate", models[0], models[1], *options)
    assert result["notes"]["members"] == ["at-0", "at-0.25", "at-1"]
    for at, end in (("at-0", models[0]), ("at-1", models[1])):
        for name, value in Checkpoint(end).items():
            np.testing.assert_array_equal(Checkpoint(tmp_path / "all" / at)[name], value)
    run(capsys, "verify", tmp_path / "all")
    assert len(run(capsys, "inspect", tmp_path / "all")["checkpoints"]) == 3


def test_what_cannot_work_is_refused_before_anything_is_scored(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x")
    pair = [str(models[0]), str(models[1])]
    cases = [
        (["merge", "greedy", *pair, "--out", out], "scoring needs data"),
        (["merge", "greedy", *pair, *DATA, "--metric", "f1", "--out", out], "'f1' is not known"),
        (["merge", "interpolate", *pair, "--at", "0,1", "--out", out], "nothing says which is best"),
        (["merge", "interpolate", *pair, str(models[2]), "--out", out], "expected two"),
        (["merge", "uniform", *pair, "--bn", "refresh", "--out", out], "scoring needs data"),
        (["merge", "greedy", *pair, "--score-command", "true", "--out", out], "no {checkpoint}"),
    ]
    for arguments, message in cases:
        assert run_command_line(arguments) in (1, 2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
