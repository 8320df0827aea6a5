"""`merge learned`, `mehl`, `twa` and `evolve` on a real model and real digits, as a user runs them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import fork
from jobs.killed_search import killed_after_two_epochs
from jobs.noisy import noisy_models

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

DATA = (
    "--data",
    "digits",
    "--num-train",
    "64",
    "--num-held-out",
    "120",
    "--num-test",
    "60",
    "--threads",
    "1",
)
K = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short training run and noisy copies of it, as a sweep: the last is hopeless. Norms are frozen."""
    folder = tmp_path_factory.mktemp("models")
    models = noisy_models(folder, "--threads", "1", "--epochs", "3", noises=(0.05, 0.1, 0.8))
    for k, model in enumerate(models[1:], 1):
        scores = {"held_out": {"top1": {"value": 0.5 - k / 10}}}
        Manifest(command="test", recipe={}, metrics=scores).write(model)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    code = run_command_line([str(argument) for argument in (*arguments, "--json", "--quiet")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out)
    return result


def merge(
    capsys: pytest.CaptureFixture[str], method: str, models: Path, out: Path, *options: object
) -> dict[str, Any]:
    return run(capsys, "merge", method, models / "m*", *DATA, "--out", out, *options)


def coefficients(manifest: dict[str, Any]) -> np.ndarray:
    """Without the column of what lies outside the span."""
    return np.array(manifest["mixture"]["coefficients"])[:, :-1]


def loss(manifest: dict[str, Any], split: str = "held_out") -> float:
    return float(manifest["metrics"][split]["nll"]["value"])


def uniform_loss(manifest: dict[str, Any]) -> float:
    return float(manifest["notes"]["uniform"]["held_out"]["nll"]["value"])


@pytest.mark.parametrize("method", ["learned", "mehl", "twa"])
def test_a_soup_is_learned_written_scored_and_made_again(
    method: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "learned": ("--lr", "0.3", "--no-plots"),
        "mehl": ("--lr", "0.1", "--batch-size", "64"),
        "twa": ("--fit", "held_out", "--lr", "1", "--epochs", "4", "--no-plots"),
    }
    soup = merge(capsys, method, models, tmp_path / "soup", *options[method])
    assert loss(soup) < uniform_loss(soup)
    found = coefficients(soup)
    assert found.shape == (K, 1 if method != "mehl" else len(soup["notes"]["blocks"]))
    assert found.mean(1)[3] < found.mean(1)[0]  # the last is hopeless
    if method != "twa":
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-9)
    assert len(soup["trace"]) == {"learned": 5, "mehl": 5, "twa": 4}[method]
    assert soup["trace"][-1]["loss"] < soup["trace"][0]["loss"]
    batch_size = ("--batch-size", {"learned": 256, "mehl": 64, "twa": 128}[method])
    evaluated = run(capsys, "evaluate", tmp_path / "soup", *DATA[:-2], *batch_size)
    for split in ("held_out", "test"):
        for metric in ("top1", "nll"):
            value = evaluated["metrics"][split][metric]["value"]
            assert value == pytest.approx(soup["metrics"][split][metric]["value"], abs=1e-6)
    again = run(capsys, "reproduce", tmp_path / "soup", "--out", tmp_path / "again")
    assert again["outputs"]["content"] == soup["outputs"]["content"]
    drawn = {"coefficients.png", "learning.png"} & set(soup["outputs"]["files"])
    assert len(drawn) == (2 if method == "mehl" else 0)
    run(capsys, "verify", tmp_path / "soup")
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.mark.slow
def test_resident_forms_learn_nearly_the_same(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--epochs", 1, "--lr", "0.2", "--bn", "average", "--no-plots")
    exact = merge(capsys, "mehl", models, tmp_path / "exact", *options, "--resident", "float32")
    assert np.abs(coefficients(exact) - 1 / K).max() > 0.1
    for form in ("bfloat16", "int8", "disk"):
        other = merge(capsys, "mehl", models, tmp_path / form, *options, "--resident", form)
        assert other["notes"]["memory"]["form"] == form
        apart = np.abs(coefficients(other) - coefficients(exact))
        # Adam takes steps of one size also where a gradient is all rounding, and there their signs differ.
        assert np.mean(apart < (1e-3 if form == "disk" else 0.05)) > 0.95
        assert loss(other) == pytest.approx(loss(exact), abs=0.02)


def test_model_batches_build_on_the_soup_so_far(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soup = merge(
        capsys,
        "mehl",
        models,
        tmp_path / "s",
        "--model-batch",
        2,
        "--models-epochs",
        2,
        "--epochs",
        1,
        "--lr",
        "0.1",
        "--no-plots",
    )
    assert list(dict.fromkeys(step["run"] for step in soup["trace"])) == [
        f"models {i}.{j}" for i in (1, 2) for j in (1, 2)
    ]
    np.testing.assert_allclose(coefficients(soup).sum(0), 1, atol=1e-9)
    assert np.abs(coefficients(soup)).max(1).min() > 0
    assert loss(soup) < uniform_loss(soup)


def test_cross_fitting_chooses_the_number_of_epochs(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--folds", 2, "--epochs", 3, "--lr", "0.2", "--metric", "nll", "--no-plots")
    soup = merge(capsys, "mehl", models, tmp_path / "s", *options)
    (chosen,) = soup["notes"]["cross_fitting"]
    assert len(chosen["fold_scores"]) == 2
    assert all(len(scores) == 4 for scores in chosen["fold_scores"])
    assert chosen["epochs"] == int(np.argmin(chosen["mean_scores"])) == len(soup["trace"])
    assert chosen["mean_scores"][0] == pytest.approx(uniform_loss(soup), abs=0.05)


def test_batch_norm_statistics_are_as_asked_for(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("--epochs", 1, "--no-plots")
    for bn, expected in (("average", None), ("keep", 0)):
        merge(capsys, "learned", models, tmp_path / bn, *quick, "--bn", bn)
        statistics = [Checkpoint(models / f"m{k}")["bn1.running_var"] for k in range(K)]
        wanted = statistics[0] if expected == 0 else np.mean(statistics, 0)
        np.testing.assert_allclose(Checkpoint(tmp_path / bn)["bn1.running_var"], wanted, rtol=1e-6)
    merge(capsys, "learned", models, tmp_path / "refresh", *quick)
    assert not np.allclose(Checkpoint(tmp_path / "refresh")["bn1.running_var"], wanted, rtol=1e-3)


def test_dry_run_prints_the_memory_and_writes_nothing(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = merge(
        capsys, "mehl", models, tmp_path / "s", "--dry-run", "--max-memory", "8GiB", "--resident", "int8"
    )
    assert plan["memory"]["limit"] == 8 << 30
    assert plan["memory"]["form"] == "int8"
    assert plan["memory"]["total"] == sum(plan["memory"]["bytes"].values())
    assert list(tmp_path.iterdir()) == []
    arguments = [
        "merge",
        "mehl",
        str(models / "m*"),
        *DATA,
        "--out",
        str(tmp_path / "s"),
        "--max-memory",
        "1MB",
    ]
    assert run_command_line(arguments) == 2
    assert "max_memory is 1 MB" in capsys.readouterr().err


def test_the_best_can_be_left_out(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """m1 … m3 record .4, .3, .2, and m0 what it scored."""
    recorded = {
        path.name: Manifest.read(path).metrics["held_out"]["top1"]["value"] for path in models.glob("m*")
    }
    worst = sorted(sorted(recorded, key=lambda name: recorded[name])[:2])
    for method in ("learned", "greedy"):
        options = ("--epochs", 1, "--no-plots") if method == "learned" else ()
        soup = merge(capsys, method, models, tmp_path / method, "--drop-top", 2, *options)
        assert [Path(entry["reference"]).name for entry in soup["inputs"]] == worst
    refused = ["merge", "learned", str(models / "m*"), *DATA, "--out", str(tmp_path / "x"), "--drop-top"]
    assert run_command_line([*refused, "4"]) == 2
    assert run_command_line([*refused, "1", "--by", "test.top1"]) == 2
    assert "must not choose" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["learned", "mehl", "twa", "evolve", "greedy"])
def test_one_checkpoint_is_refused_in_the_same_words(
    method: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Greedy is right with one: it is the best single."""
    arguments = ["merge", method, str(models / "m1"), *DATA, "--out", str(tmp_path / "x")]
    assert run_command_line(arguments) == (0 if method == "greedy" else 2)
    assert "among two checkpoints or more, here is one" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "x").exists() == (method == "greedy")


def test_what_leaves_one_checkpoint_is_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("twa", "--every", "9"), ("learned", "--drop-top", str(K - 1))):
        arguments = ["merge", words[0], str(models / "m*"), *DATA, "--out", str(tmp_path / "x"), *words[1:]]
        assert run_command_line(arguments) == 2
        assert "here is one" in capsys.readouterr().err


def test_twa_starts_where_it_is_told(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of next to nothing, the soup is the start."""
    options = ("--fit", "held_out", "--epochs", 1, "--lr", "1e-12", "--weight-decay", 0, "--no-plots")
    average = merge(capsys, "twa", models, tmp_path / "average", *options)
    np.testing.assert_allclose(coefficients(average)[:, 0], 1 / K, atol=1e-4)
    second = merge(
        capsys, "twa", models, tmp_path / "second", *options, "--start", "1", "--every", 2, "--force"
    )
    assert [Path(entry["reference"]).name for entry in second["inputs"]] == ["m1", "m3"]
    np.testing.assert_allclose(coefficients(second)[:, 0], [0, 1], atol=1e-4)


def test_twa_learns_from_augmented_training_data(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--epochs", 2, "--lr", "0.2", "--no-plots")
    soup = merge(capsys, "twa", models, tmp_path / "augmented", *options)
    plain = merge(capsys, "twa", models, tmp_path / "plain", *options, "--no-augment")
    assert {"split": "train", "num_examples": 64}.items() <= soup["notes"]["learned_on"].items()
    assert soup["trace"][0]["loss"] != plain["trace"][0]["loss"]


SCORER = """
import struct, sys
weights = struct.unpack("<3f", open(sys.argv[1] + "/model.safetensors", "rb").read()[-12:])
print('{"loss": %r}' % max(abs(weight - 1) for weight in weights))
"""


def test_evolve_searches_with_an_external_scorer(
    save: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """w = 0, 0, 2: the loss |w − 1| is least where the last has half of the weight."""
    paths = [save(f"s{k}", {"w": np.full(3, value, np.float32)}) for k, value in enumerate((0.0, 0.0, 2.0))]
    (tmp_path / "score.py").write_text(SCORER)
    command = f"{shlex.quote(sys.executable)} -S {shlex.quote(str(tmp_path / 'score.py'))} {{checkpoint}}"
    options = ("--score-command", command, "--metric", "loss", "--direction", "min", "--evaluations", 14)
    soup = run(capsys, "merge", "evolve", *paths, *options, "--out", tmp_path / "soup")
    assert soup["notes"]["uniform"]["value"] == pytest.approx(1 / 3)
    assert soup["metrics"]["held_out"]["loss"]["value"] < 0.2
    again = run(capsys, "merge", "evolve", *paths, *options, "--out", tmp_path / "again")
    assert again["mixture"]["coefficients"] == soup["mixture"]["coefficients"]


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_coefficients(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of a fork of this process, as soon as two epochs are in the journal; then the same command
    again."""
    options = ("--epochs", 4, "--lr", "0.2", "--no-plots")
    whole = merge(capsys, "mehl", models, tmp_path / "whole", *options)
    out, journal = tmp_path / "soup", tmp_path / ".soup.soupkit-journal"
    words = ["merge", "mehl", models / "m*", *DATA, "--out", out, *options, "--quiet"]
    assert (
        fork(killed_after_two_epochs, [str(word) for word in words], folder=tmp_path / "process").wait() == -9
    )
    assert not out.exists()
    assert _finished_epochs(journal) == 2
    soup = merge(capsys, "mehl", models, out, *options)
    assert coefficients(soup).tolist() == coefficients(whole).tolist()
    assert soup["outputs"]["content"] == whole["outputs"]["content"]
    assert [step["loss"] for step in soup["trace"]] == [step["loss"] for step in whole["trace"]]
    assert not journal.exists()


def _finished_epochs(journal: Path) -> int:
    import torch

    if not journal.is_file():
        return 0
    state = torch.load(journal, weights_only=True)["state"]
    return int(state["epoch"]) if state else 0
