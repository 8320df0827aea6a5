"""CLIP models with batch norm (the RN50 family): every command that re-estimates statistics, on a tiny
one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.task.images.models import ModelSpec, build

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": [1, 1, 1, 1],
            "width": 8,
            "patch_size": None,
            "head_width": 8,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {},
}
DATA = ("--data", "digits", "--num-train", "40", "--num-held-out", "24", "--num-test", "16", "--threads", "1")
STATISTICS = "visual.bn1.running_mean"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for k in range(2):
        torch.manual_seed(k)
        model = build(ModelSpec("open_clip", "tiny", {}, CONFIG))
        (folder / f"c{k}").mkdir()
        (folder / f"c{k}" / "open_clip_config.json").write_text(json.dumps(CONFIG))
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, folder / f"c{k}" / "open_clip_model.safetensors")
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    code = run_command_line([*map(str, words), "--json", "--quiet"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found: dict[str, Any] = json.loads(captured.out)
    return found


@pytest.mark.parametrize("method", ["uniform", "greedy", "learned"])
def test_statistics_of_the_image_tower_are_re_estimated(
    method: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--bn", "refresh") if method in ("uniform", "greedy") else ("--epochs", 1, "--no-plots")
    soup = run(capsys, "merge", method, models / "c*", *DATA, *options, "--out", tmp_path / "soup")
    means = np.mean([Checkpoint(models / f"c{k}")[STATISTICS] for k in range(2)], 0)
    found = Checkpoint(tmp_path / "soup")[STATISTICS]
    assert np.abs(found - means).max() > 0.1  # those of random weights are zeros
    if method == "uniform":
        again = run(capsys, "reproduce", tmp_path / "soup", "--out", tmp_path / "again")
        assert again["outputs"]["content"] == soup["outputs"]["content"]


def test_a_curve_keeps_one_text_tower(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "curve",
        "fit",
        models / "c0",
        models / "c1",
        *DATA,
        "--batch-size",
        8,
        "--out",
        tmp_path / "curve",
    )
    assert run_command_line([*map(str, words)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "of the text tower differs: a curve keeps one head" in said
    assert not (tmp_path / "curve").exists()
