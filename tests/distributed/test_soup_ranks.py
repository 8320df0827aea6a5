"""Two gloo processes come to what one process comes to: mehl, twa, learned, greedy and evaluate, in one
recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed.ranks import run_ranks
from forked import command_line

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.cli.app import run_command_line

RECIPE = """
description: every command that knows ranks
variables: {out: here, models: there}
steps:
  mehl: {command: merge mehl, refs: ["${models}/m*"], epochs: 1, lr: 0.2, out: "${out}/mehl", plots: false,
  DATA}
  twa: {command: merge twa, refs: ["${models}/m*"], epochs: 1, lr: 1, fit: held_out, resident: int8,
        out: "${out}/twa", plots: false, DATA}
  learned: {command: merge learned, refs: ["${models}/m*"], epochs: 2, lr: 0.3, folds: 2, bn: average,
  metric: nll,
            out: "${out}/learned", plots: false, DATA}
  greedy: {command: merge greedy, refs: ["${models}/m*"], out: "${out}/greedy", DATA}
  scores: {command: evaluate, refs: ["${models}/m*"], ensemble: logits, out: "${out}/scores", DATA}
"""
DATA = "data: digits, num_train: 64, num_held_out: 101, num_test: 90, device: cpu, batch_size: 40"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The recipe's outputs by one process and by two."""
    folder = tmp_path_factory.mktemp("ranks")
    base = [
        "finetune",
        "--model",
        "timm:test_resnet,num_classes=10,img_size=32",
        "--data",
        "digits",
        "--num-train",
        "200",
    ]
    sizes = ["--num-held-out", "101", "--num-test", "90", "--batch-size", "30", "--threads", "1"]
    assert (
        run_command_line(
            [*base, *sizes, "--epochs", "2", "--lr", "3e-3", "--out", str(folder / "m0"), "--quiet"]
        )
        == 0
    )
    tensors = dict(Checkpoint(folder / "m0"))
    for k in (1, 2):
        random = np.random.default_rng(k)
        (folder / f"m{k}").mkdir()
        noisy = {
            name: value + (0.1 * k * value.std() * random.standard_normal(value.shape)).astype(value.dtype)
            if value.ndim > 1
            else value
            for name, value in tensors.items()
        }
        write_tensors(folder / f"m{k}", noisy)
        (folder / f"m{k}" / "config.json").write_text((folder / "m0" / "config.json").read_text())
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("DATA", DATA))
    words = ["run", str(recipe), "--set", f"models={folder}", "--set"]
    assert run_command_line([*words, f"out={folder / 'one'}", "--quiet"]) == 0
    two = [*words, f"out={folder / 'two'}", "--json", "--quiet"]
    first, second = run_ranks(command_line, two, size=2, folder=folder / "ranks")
    assert (first.wait(), second.wait()) == (0, 0), first.stderr + second.stderr
    assert set(json.loads(first.stdout)["steps"]) == {"mehl", "twa", "learned", "greedy", "scores"}
    assert second.stdout == second.stderr == ""  # only rank 0 speaks
    return {"one": folder / "one", "two": folder / "two"}


def manifests(outputs: dict[str, Path], step: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = (json.loads((folder / step / "soupkit.json").read_text()) for folder in outputs.values())
    return one, two


@pytest.mark.parametrize("step", ["mehl", "twa", "learned"])
def test_two_processes_learn_what_one_learns(outputs: dict[str, Path], step: str) -> None:
    one, two = manifests(outputs, step)
    assert (one["notes"]["ranks"], two["notes"]["ranks"]) == (1, 2)
    a, b = (np.array(manifest["mixture"]["coefficients"]) for manifest in (one, two))
    assert np.abs(a - 1 / 3).max() > 0.01
    np.testing.assert_allclose(a, b, atol=1e-3)
    losses = [[entry["loss"] for entry in manifest["trace"]] for manifest in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    if step == "learned":
        folds = [manifest["notes"]["cross_fitting"]["fold_scores"] for manifest in (one, two)]
        np.testing.assert_allclose(*folds, rtol=1e-5)
    for found in ([manifest["metrics"], manifest["notes"]["uniform"]] for manifest in (one, two)):
        assert all(
            set(scores) == {"held_out", "test"} for scores in found
        )  # the uniform row is there with two, too
    for where in (lambda manifest: manifest["metrics"], lambda manifest: manifest["notes"]["uniform"]):
        nll = [where(manifest)["test"]["nll"]["value"] for manifest in (one, two)]
        assert nll[0] == pytest.approx(nll[1], rel=1e-3)


def test_ranks_hold_only_their_share_of_the_directions(outputs: dict[str, Path]) -> None:
    one, two = (manifest["notes"]["memory"]["bytes"] for manifest in manifests(outputs, "mehl"))
    share = {name: size for name, size in two.items() if name.startswith("directions")}
    whole = {name: size for name, size in one.items() if name.startswith("directions")}
    assert list(share) == ["directions, 2 × float32"]
    assert sum(share.values()) * 3 == sum(whole.values()) * 2


def test_greedy_picks_and_scores_the_same(outputs: dict[str, Path]) -> None:
    one, two = manifests(outputs, "greedy")
    names = [[Path(pick).name for pick in manifest["notes"]["picks"]] for manifest in (one, two)]
    assert names[0] == names[1]
    assert one["outputs"]["content"] == two["outputs"]["content"]
    assert one["notes"]["held_out_of_soup"]["value"] == two["notes"]["held_out_of_soup"]["value"]


def test_evaluate_scores_every_example_once(outputs: dict[str, Path]) -> None:
    one, two = manifests(outputs, "scores")
    assert set(one["metrics"]) == set(two["metrics"])
    for name, splits in one["metrics"].items():
        for split, scores in splits.items():
            for metric, score in scores.items():
                other = two["metrics"][name][split][metric]
                assert other["num_examples"] == score["num_examples"]
                assert other["value"] == pytest.approx(score["value"], abs=1e-5)
