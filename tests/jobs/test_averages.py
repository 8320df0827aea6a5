"""`merge swa|ema|posthoc-ema` as a user runs them: against stepping in exact arithmetic, and in the right
order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest
from soupkit.merge.running import PowerEma

Save = Callable[..., Path]
STEPS = (900, 1000, 1100, 1200, 1300, 1400)


@pytest.fixture
def trajectory(save: Save) -> list[dict[str, np.ndarray]]:
    """Six checkpoints of one training as runs/step-N, whose names sort wrongly as text."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 2000)).cumsum(axis=0).astype(np.float32)
    states = [
        {
            "w": row[:1900].reshape(19, 100),
            "bn.running_var": np.abs(row[1900:]),
            "bn.num_batches_tracked": np.array(k),
        }
        for k, row in enumerate(weights)
    ]
    for step, state in zip(STEPS, states):
        save(f"runs/step-{step}", state)
    return states


def run(*arguments: object, capsys: Any = None) -> Any:
    assert run_command_line([str(argument) for argument in (*arguments, "--json", "--quiet")]) == 0
    return json.loads(capsys.readouterr().out) if capsys else None


def fail(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    capsys.readouterr()
    assert run_command_line([str(argument) for argument in arguments]) == code
    return capsys.readouterr().err


def in_order(tmp_path: Path) -> list[Path]:
    return [tmp_path / "runs" / f"step-{step}" for step in STEPS]


def ema(states: list[dict[str, np.ndarray]], name: str, decay: float) -> np.ndarray:
    """Stepped in float64."""
    average = states[0][name].astype(np.float64)
    for state in states[1:]:
        average = decay * average + (1 - decay) * state[name].astype(np.float64)
    return average.astype(np.float32)


def test_ema_is_what_stepping_makes(trajectory: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    run("merge", "ema", *in_order(tmp_path), "--decay", 0.7, "--out", tmp_path / "soup")
    soup = Checkpoint(tmp_path / "soup")
    for name in ("w", "bn.running_var"):
        np.testing.assert_array_max_ulp(soup[name], ema(trajectory, name, 0.7), maxulp=1)
    assert soup["bn.num_batches_tracked"] == 5
    column = np.array(Manifest.read(tmp_path / "soup").mixture["coefficients"])[:, 0]  # type: ignore[index]
    np.testing.assert_allclose(column, [0.7**5, *(0.3 * 0.7 ** (4 - k) for k in range(5))], rtol=1e-14)


def test_ema_warms_up_as_in_training(trajectory: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    options = ("--decay", 0.9, "--gamma", 1, "--start", 1, "--every", 2)
    run("merge", "ema", *in_order(tmp_path), *options, "--out", tmp_path / "soup")
    average = trajectory[1]["w"].astype(np.float64)
    for number, k in enumerate((3, 5), start=1):
        decay = min(0.9, 1 - (1 + 2 * number) ** (-2 / 3))
        average = decay * average + (1 - decay) * trajectory[k]["w"].astype(np.float64)
    np.testing.assert_array_max_ulp(Checkpoint(tmp_path / "soup")["w"], average.astype(np.float32), maxulp=1)


def test_swa_is_the_exact_mean_of_those_that_count(
    trajectory: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    run("merge", "swa", *in_order(tmp_path), "--start", 1, "--every", 2, "--out", tmp_path / "soup")
    wanted = (trajectory[2]["w"].astype(np.float64) + trajectory[4]["w"].astype(np.float64)) / 2
    np.testing.assert_array_equal(Checkpoint(tmp_path / "soup")["w"], wanted.astype(np.float32))


@pytest.mark.parametrize("method", [("swa",), ("ema", "--decay", 0.37)])
def test_copies_give_themselves_back(method: tuple[object, ...], save: Save, tmp_path: Path) -> None:
    tensors = {"w": np.random.default_rng(1).normal(size=100_000).astype(np.float32)}
    for k in range(7):
        save(f"runs/{k}", tensors)
    run("merge", method[0], tmp_path / "runs" / "*", *method[1:], "--out", tmp_path / "soup")
    np.testing.assert_array_equal(Checkpoint(tmp_path / "soup")["w"], tensors["w"])


@pytest.mark.usefixtures("trajectory")
def test_a_glob_is_taken_by_its_numbers_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glob = tmp_path / "runs" / "step-*"
    run("merge", "ema", *in_order(tmp_path), "--out", tmp_path / "right")
    run("merge", "ema", glob, "--order", "number", "--out", tmp_path / "number")
    run("merge", "ema", *reversed(in_order(tmp_path)), "--order", "number", "--out", tmp_path / "sorted")
    run("merge", "ema", glob, "--order", "text", "--out", tmp_path / "text")
    run("merge", "ema", *reversed(in_order(tmp_path)), "--out", tmp_path / "backwards")
    capsys.readouterr()
    assert run_command_line(["merge", "ema", str(glob), "--out", str(tmp_path / "glob")]) == 0
    assert "in the order of numbers, step-900 … step-1400; --order text takes step-1000" in _flat(capsys)
    right, text, backwards = (Checkpoint(tmp_path / name)["w"] for name in ("right", "text", "backwards"))
    for name in ("glob", "number", "sorted"):
        np.testing.assert_array_equal(Checkpoint(tmp_path / name)["w"], right)
    as_text = [tmp_path / "runs" / f"step-{step}" for step in sorted(map(str, STEPS))]
    run("merge", "ema", *as_text, "--out", tmp_path / "as-text")
    np.testing.assert_array_equal(Checkpoint(tmp_path / "as-text")["w"], text)
    assert not np.array_equal(text, right)
    assert not np.array_equal(backwards, right)


def _flat(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "names", [("checkpoint-500", "checkpoint-1000", "checkpoint-1500"), ("e=9", "e=10", "e=11")]
)
def test_the_last_checkpoint_of_a_glob_is_the_newest(
    save: Save, tmp_path: Path, names: tuple[str, ...]
) -> None:
    for value, name in zip((500.0, 1000.0, 1500.0), names):
        save(f"runs/{name}", {"w": np.full(2, value, np.float32)})
    run("merge", "ema", tmp_path / "runs/*", "--decay", 0.5, "--out", tmp_path / "ema")
    run("merge", "swa", tmp_path / "runs/*", "--start", 2, "--out", tmp_path / "swa")
    assert Checkpoint(tmp_path / "ema")["w"][0] == 1125
    assert Checkpoint(tmp_path / "swa")["w"][0] == 1500


def test_what_has_no_place_in_the_order_is_refused(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("epoch_9", "epoch_10", "epoch_latest"):
        save(f"runs1/{name}", {"w": np.zeros(3, np.float32)})
    for order in ("given", "number"):
        command = ("merge", "swa", tmp_path / "runs1/*", "--order", order, "--out", tmp_path / "soup")
        text = " ".join(fail(capsys, *command).split())
        assert "epoch_latest: has no number" in text
        assert "leave epoch_latest out, with a pattern such as 'epoch_[0-9]*'" in text
    run("merge", "swa", tmp_path / "runs1/epoch_[0-9]*", "--out", tmp_path / "soup")
    run(
        "merge",
        "swa",
        *(tmp_path / "runs1" / f"epoch_{name}" for name in (9, 10, "latest")),
        "--out",
        tmp_path / "all",
    )


@pytest.mark.usefixtures("trajectory")
def test_numbers_must_tell_an_order(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [save(f"{name}/step-900", {"w": np.zeros(3, np.float32)}) for name in ("a", "b")]
    options = ("--order", "number", "--out", tmp_path / "soup")
    assert "same last number" in fail(capsys, "merge", "swa", *same, *options)
    nameless = save("unnumbered", {"w": np.zeros(3, np.float32)})
    monkeypatch.chdir(tmp_path)
    assert "unnumbered: has no number" in fail(capsys, "merge", "swa", nameless.name, *options)
    assert not (tmp_path / "soup").exists()


def test_batch_norm_may_be_the_last_ones(trajectory: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    run("merge", "ema", *in_order(tmp_path), "--decay", 0.5, "--bn", "last", "--out", tmp_path / "soup")
    soup = Checkpoint(tmp_path / "soup")
    np.testing.assert_array_equal(soup["bn.running_var"], trajectory[-1]["bn.running_var"])
    np.testing.assert_array_max_ulp(soup["w"], ema(trajectory, "w", 0.5), maxulp=1)


def test_reproduce_gives_the_same_bits(
    trajectory: list[dict[str, np.ndarray]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("merge", "ema", *in_order(tmp_path), "--bn", "last", "--out", tmp_path / "soup")
    first = Manifest.read(tmp_path / "soup").outputs["content"]
    capsys.readouterr()
    again = run("reproduce", tmp_path / "soup", "--out", tmp_path / "again", capsys=capsys)
    assert again["outputs"]["content"] == first


def test_posthoc_ema_finds_a_width_that_was_not_kept(save: Save, tmp_path: Path) -> None:
    """Snapshots of two power-function EMAs of a random walk, written as training writes them."""
    weights = np.random.default_rng(0).normal(size=(256, 300)).cumsum(axis=0)
    for sigma in (0.05, 0.1):
        rule, average = PowerEma.of_width(sigma), np.zeros(300)
        for step, live in enumerate(weights, start=1):
            average += (rule.rate(step) or 0) * (live - average)
            if step % 32 == 0:
                path = save(f"posthoc/sigma-{sigma}-update-{step}", {"w": average.astype(np.float32)})
                notes = {"posthoc": {"gamma": rule.gamma, "sigma_rel": sigma, "step": step}}
                Manifest(command="finetune", recipe={}, notes=notes).write(path)
    run("merge", "posthoc-ema", tmp_path / "posthoc" / "*", "--sigma-rel", 0.08, "--out", tmp_path / "soup")
    rule, wanted = PowerEma.of_width(0.08), np.zeros(300)
    for step, live in enumerate(weights, start=1):
        wanted += (rule.rate(step) or 0) * (live - wanted)
    found = Checkpoint(tmp_path / "soup")["w"]
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(weights[-1] - wanted)
    notes = Manifest.read(tmp_path / "soup").notes
    assert notes["at"] == 256
    assert 0 < notes["profile_error"] < 0.05


@pytest.mark.usefixtures("trajectory")
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = in_order(tmp_path), ("--out", tmp_path / "soup")
    assert "nothing is averaged in 6 steps" in fail(capsys, "merge", "swa", *runs, "--start", 6, *out)
    assert "decay is 1.0" in fail(capsys, "merge", "ema", *runs, "--decay", 1, *out)
    assert "--bn refresh needs --data" in fail(capsys, "merge", "swa", *runs, "--bn", "refresh", *out)
    assert "no snapshot of a power-function EMA" in fail(
        capsys, "merge", "posthoc-ema", *runs, "--sigma-rel", 0.1, *out
    )
    assert "sigma_rel is 0.3" in fail(capsys, "merge", "posthoc-ema", *runs, "--sigma-rel", 0.3, *out)
    assert not (tmp_path / "soup").exists()


@pytest.mark.usefixtures("trajectory")
def test_dry_run_shows_the_coefficients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("merge", "ema", *in_order(tmp_path), "--decay", 0.5, "--dry-run", "--out", tmp_path / "soup")
    plan = run(*arguments, capsys=capsys)
    assert plan["coefficients"] == [1 / 32, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert not (tmp_path / "soup").exists()
