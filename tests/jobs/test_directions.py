"""Every command that chooses knows which way its metric is better, or refuses before anything is scored."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

SCORER = """
import struct, sys
open(__file__.replace("score.py", "runs"), "a").write("x")
value = struct.unpack("<f", open(sys.argv[1] + "/model.safetensors", "rb").read()[-4:])[0]
print(sys.argv[2].replace("VALUE", repr(value)))
"""


@pytest.fixture
def models(save: Any) -> list[Path]:
    """Three models of one number each: 3, 9, 27."""
    return [save(f"m{k}", {"w": np.full(1, value, np.float32)}) for k, value in enumerate((3.0, 9.0, 27.0))]


@pytest.fixture
def scorer(tmp_path: Path):  # type: ignore[no-untyped-def]
    """scorer(text) → a score command that prints the text with the model's number for VALUE."""
    (tmp_path / "score.py").write_text(SCORER)
    return lambda text: (
        f"{shlex.join([sys.executable, '-S', str(tmp_path / 'score.py')])} {{checkpoint}} {shlex.quote(text)}"
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[Any, str]:
    capsys.readouterr()
    found = run_command_line([str(argument) for argument in (*arguments, "--json")])
    captured = capsys.readouterr()
    assert found == code, captured.err
    return (json.loads(captured.out) if code == 0 else None), " ".join(captured.err.split())


LOWEST, HIGHEST = 3.0, 27.0


@pytest.mark.parametrize(
    ("metric", "options", "value", "said"),
    [
        ("nll", (), LOWEST, ""),
        ("Val_Loss", (), LOWEST, ""),
        ("eval/WER", (), LOWEST, ""),
        ("perplexity", (), LOWEST, ""),
        ("BLEU", (), HIGHEST, ""),
        ("rmse", ("--direction", "max"), HIGHEST, "better when it is lower"),
        ("accuracy", ("--direction", "min"), LOWEST, "better when it is higher"),
        ("foo", ("--direction", "min"), LOWEST, ""),
    ],
)
@pytest.mark.parametrize("command", ["greedy", "interpolate"])
def test_the_best_is_the_best_by_the_name_of_the_metric(
    models: list[Path], scorer: Any, tmp_path: Path, capsys: Any, metric: str, options: Any, value: float,
    said: str,
    command: str,
) -> None:  # fmt: skip
    given = models[1:] if value == HIGHEST else models[:2]
    more = ("--at", "0,1") if command == "interpolate" else ()
    arguments = (
        *given,
        *more,
        "--score-command",
        scorer(json.dumps({metric: "VALUE"}).replace('"VALUE"', "VALUE")),
    )
    soup, err = run(
        capsys, "merge", command, *arguments, "--metric", metric, *options, "--out", tmp_path / "o"
    )
    assert Checkpoint(tmp_path / "o")["w"].tolist() == [value]
    assert list(soup["metrics"].get("held_out", {metric: 0})) == [metric]
    assert said in err if said else "better when" not in err


@pytest.mark.parametrize("command", ["greedy", "interpolate", "evolve"])
def test_an_unknown_metric_is_refused_before_anything_is_scored(
    models: list[Path], scorer: Any, tmp_path: Path, capsys: Any, command: str
) -> None:
    arguments = (*models[:2], "--score-command", scorer("VALUE"), "--metric", "quux", "--out", tmp_path / "o")
    _, err = run(capsys, "merge", command, *arguments, code=2)
    assert "'quux'" in err
    assert "hint: give --direction max|min" in err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "o").exists()


def test_evolve_minimises_what_is_better_lower(
    models: list[Path], scorer: Any, tmp_path: Path, capsys: Any
) -> None:
    arguments = (*models[:2], "--score-command", scorer("VALUE"), "--metric", "cer", "--evaluations", 5)
    soup, _ = run(capsys, "merge", "evolve", *arguments, "--out", tmp_path / "o")
    assert soup["metrics"]["held_out"]["cer"]["value"] < 6 == soup["notes"]["uniform"]["value"]


@pytest.mark.parametrize("text", ["VALUE", '{"score": VALUE, "loss": 1}', '{"accuracy": VALUE}'])
def test_a_score_without_a_name_is_called_score_and_is_better_when_higher(
    models: list[Path], scorer: Any, tmp_path: Path, capsys: Any, text: str
) -> None:
    soup, err = run(
        capsys, "merge", "greedy", *models, "--score-command", scorer(text), "--out", tmp_path / "o"
    )
    assert soup["notes"]["picks"] == [str(models[2])]
    assert set(soup["metrics"]["held_out"]) == {"score"}
    assert "called score, and higher is better" in err


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ('{"nll": VALUE}', (), "--metric nll"),
        ('{"quux": VALUE}', (), "--metric quux"),
        ('{"a": VALUE, "b": 1}', (), "gave no number 'score'"),
        ('{"accuracy": VALUE}', ("--metric", "top1"), "gave no number 'top1'"),
        ('{"accuracy": VALUE}', ("--metric", "Accuracy"), "gave no number 'Accuracy'"),
        ('{"loss": VALUE}', ("--metric", "score"), "gave no number 'score'"),
        ('{"standard_error": VALUE}', (), "gave no number 'score'"),
        ('{"num_examples": VALUE}', ("--metric", "loss"), "gave no number 'loss'"),
    ],
)
def test_another_number_is_not_taken_for_the_one_that_was_named(
    models: list[Path], scorer: Any, tmp_path: Path, capsys: Any, text: str, options: Any, said: str
) -> None:
    arguments = ("--score-command", scorer(text), *options, "--out", tmp_path / "o")
    _, err = run(capsys, "merge", "greedy", *models, *arguments, code=1)
    assert said in err
    _, err = run(
        capsys, "evaluate", models[0], *arguments[:-2], code=1 if options or "b" in text or "_" in text else 0
    )


def test_an_explicit_direction_makes_a_single_number_of_any_name_the_score(
    models: list[Path], scorer: Any, tmp_path: Path, capsys: Any
) -> None:
    arguments = ("--score-command", scorer('{"nll": VALUE}'), "--direction", "min", "--out", tmp_path / "o")
    soup, _ = run(capsys, "merge", "greedy", *models, *arguments)
    assert soup["notes"]["picks"] == [str(models[0])]


@pytest.mark.parametrize(
    ("metric", "best"),
    [("perplexity", 0), ("PPL", 0), ("eval_wer", 0), ("nll", 0), ("rmse", 0), ("bleu", 2), ("F1-macro", 2)],
)
def test_recorded_metrics_are_ranked_the_same_way(
    models: list[Path], tmp_path: Path, capsys: Any, metric: str, best: int
) -> None:
    for path, value in zip(models, (3.0, 9.0, 27.0), strict=True):
        record = {"held_out": {metric: {"value": value}}}
        Manifest(command="evaluate", recipe={}, metrics=record).write(path)
    options = ("--by", f"held_out.{metric}", "--out", tmp_path / "o")
    soup, _ = run(capsys, "merge", "uniform", *models, "--top", 1, *options)
    assert [entry["reference"] for entry in soup["inputs"]] == [str(models[best])]


def test_an_unknown_recorded_metric_is_refused_with_the_option_that_helps(
    models: list[Path], scorer: Any, tmp_path: Path, capsys: Any
) -> None:
    for path, value in zip(models, (3.0, 9.0, 27.0), strict=True):
        Manifest(command="evaluate", recipe={}, metrics={"held_out": {"quux": {"value": value}}}).write(path)
    by = (*models, "--by", "held_out.quux", "--out", tmp_path / "o")
    _, err = run(capsys, "merge", "uniform", *by, "--top", 1, code=2)
    assert "hint: give --direction max|min" in err
    soup, _ = run(capsys, "merge", "uniform", *by, "--top", 1, "--direction", "min")
    assert [entry["reference"] for entry in soup["inputs"]] == [str(models[0])]
    drop = (*by, "--overwrite", "--drop-top", 1, "--score-command", scorer("VALUE"))
    _, err = run(capsys, "merge", "greedy", *drop, code=2)
    assert "hint: give --by-direction max|min" in err
    soup, _ = run(capsys, "merge", "greedy", *drop, "--by-direction", "min")
    assert soup["notes"]["picks"] == [str(models[2])]


def test_what_records_no_finite_number_is_never_among_the_best(
    models: list[Path], tmp_path: Path, capsys: Any
) -> None:
    for path, value in zip(models, (float("nan"), 9.0, 27.0), strict=True):
        Manifest(command="evaluate", recipe={}, metrics={"held_out": {"loss": {"value": value}}}).write(path)
    soup, _ = run(
        capsys, "merge", "uniform", *models, "--top", 1, "--by", "held_out.loss", "--out", tmp_path / "o"
    )
    assert [entry["reference"] for entry in soup["inputs"]] == [str(models[1])]
