"""Every command that computes with weights refuses codes by name, before it scores, builds or writes
anything."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line

Save = Callable[..., Path]
DATA = "--data digits --num-train 64 --num-held-out 50 --num-test 50"
SCORED = "--score-command 'touch scored {checkpoint}' --metric top1"
COMMANDS = [
    "merge uniform PLAIN CODES",
    "merge weighted CODES PLAIN --coefficients 1,2",
    f"merge interpolate PLAIN CODES {SCORED}",
    "merge interpolate CODES PLAIN --at 0.5",
    "merge swa PLAIN CODES",
    "merge ema CODES PLAIN",
    "merge trajectory CODES PLAIN",
    f"merge greedy CODES PLAIN {SCORED}",
    f"merge greedy CODES PLAIN {DATA}",
    f"merge evolve PLAIN CODES {SCORED} --evaluations 4",
    f"merge learned CODES PLAIN {DATA}",
    f"merge mehl CODES PLAIN {DATA}",
    f"merge twa CODES PLAIN {DATA}",
    "merge slerp PLAIN CODES",
    "merge linear CODES PLAIN",
    "merge ties PLAIN --base CODES",
    "merge ties CODES --base PLAIN",
    "merge model-stock PLAIN CODES --base PLAIN2",
    "merge passthrough CODES",
    f"curve fit CODES PLAIN {DATA}",
    f"chain CODES PLAIN {DATA}",
    f"plane CODES PLAIN PLAIN2 {DATA}",
    f"fge CODES {DATA}",
    f"ensemble CODES PLAIN {DATA}",
    "align CODES PLAIN",
    f"barrier CODES PLAIN {DATA}",
    "extract-lora PLAIN --base CODES",
    "extract-lora CODES --base PLAIN",
    f"evaluate CODES {DATA}",
    f"finetune --base CODES {DATA}",
    f"finetune-sweep CODES --num-runs 2 {DATA}",
    f"train-population --base CODES {DATA}",
]


@pytest.fixture
def models(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PLAIN, PLAIN2 and CODES: as many tensors of the same names, and a configuration that speaks of GPTQ in
    one."""
    tensors = {"l.qweight": np.zeros((4, 2), np.int32), "l.scales": np.ones((1, 2), np.float16)}
    for name, kind in (("PLAIN", np.float32), ("PLAIN2", np.float32), ("CODES", np.int32)):
        path = save(name, {**tensors, "l.qweight": tensors["l.qweight"].astype(kind)})
        config = {"quantization_config": {"quant_method": "gptq", "bits": 4}} if name == "CODES" else {}
        (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_codes_are_refused_by_name(models: None, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([*shlex.split(command), "--out", "out"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "CODES: is quantized by gptq" in said
    assert "hint: dequantize it first" in said
    assert not Path("out").exists()
    assert not Path("scored").exists()


def test_fp8_with_scales_is_read_as_weights_by_ties(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ml_dtypes

    codes, scale = np.full((2, 2), 2, ml_dtypes.float8_e4m3fn), np.asarray(3, np.float32)
    base = save("base", {"l.weight": codes, "l.weight_scale": scale * 0})
    paths = [save(name, {"l.weight": codes, "l.weight_scale": scale}) for name in "ab"]
    words = ["merge", "ties", *paths, "--base", base, "--density", 1, "--out", tmp_path / "out", "--quiet"]
    assert run_command_line([str(word) for word in words]) == 0, capsys.readouterr().err
    assert np.asarray(Checkpoint(tmp_path / "out")["l.weight"], np.float64).tolist() == [[6, 6], [6, 6]]
