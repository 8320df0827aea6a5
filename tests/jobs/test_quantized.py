"""fp8 checkpoints with scales are merged by what they mean; tied tensors are merged once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.source import read_chunk
from soupkit.checkpoint.views.dequantized import Dequantized
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError

Save = Callable[..., Path]
SHAPE = (10, 12)


def call(*words: Any) -> int:
    return run_command_line([str(word) for word in words])


def quantized(seed: int, *, layout: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors of an fp8 checkpoint, and the weight that they stand for."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=SHAPE).astype(ml_dtypes.float8_e4m3fn)
    plain = codes.astype(np.float64)
    extra = {"norm": rng.normal(size=5).astype(np.float32), "l.input_scale": np.ones((), np.float32)}
    if layout == "blocks":
        scales = rng.uniform(0.5, 2, size=(3, 3)).astype(np.float32)
        meaning = plain * np.kron(scales, np.ones((4, 5)))[:10, :12]
        return {"l.weight": codes, "l.weight_scale_inv": scales, **extra}, meaning
    scales = rng.uniform(0.5, 2, size={"rows": (10, 1), "tensor": ()}[layout]).astype(np.float32)
    return {"l.weight": codes, "l.weight_scale": np.asarray(scales), **extra}, plain * scales


def saved(save: Save, name: str, seed: int, *, layout: str) -> tuple[Path, np.ndarray]:
    tensors, meaning = quantized(seed, layout=layout)
    path = save(name, tensors)
    config = {"architectures": ["Net"], "quantization_config": {"weight_block_size": [4, 5]}}
    (path / "config.json").write_text(json.dumps(config))
    return path, meaning


@pytest.mark.parametrize("layout", ["blocks", "rows", "tensor"])
def test_codes_are_multiplied_by_their_scales(layout: str, save: Save) -> None:
    path, meaning = saved(save, "a", 1, layout=layout)
    view = Dequantized(Checkpoint(path))
    assert set(view) == {"l.weight", "norm"}
    np.testing.assert_allclose(view["l.weight"], meaning, rtol=1e-6)
    for start in range(0, 110, 7):
        part = np.empty(10, np.float32)
        read_chunk(view, "l.weight", start, part)
        np.testing.assert_array_equal(part, view["l.weight"].reshape(-1)[start : start + 10])


def test_a_merge_of_fp8_checkpoints_is_the_merge_of_their_weights(save: Save, tmp_path: Path) -> None:
    (a, first), (b, second) = (
        saved(save, name, seed, layout="blocks") for name, seed in (("a", 1), ("b", 2))
    )
    out = tmp_path / "out"
    options = ["--base", a, "--weight", 0.5, "--dtype", "float32", "--out", out, "--quiet"]
    assert call("merge", "task-arithmetic", b, *options) == 0
    np.testing.assert_allclose(Checkpoint(out)["l.weight"], (first + second) / 2, rtol=1e-6)
    assert set(Checkpoint(out)) == {"l.weight", "norm"}
    assert json.loads((out / "config.json").read_text()) == {"architectures": ["Net"]}
    assert call("verify", out, "--inputs", "--quiet") == 0
    assert call("reproduce", out, "--out", tmp_path / "again", "--quiet") == 0
    assert call("merge", "slerp", a, b, "--out", tmp_path / "narrow", "--quiet") == 0
    assert Checkpoint(tmp_path / "narrow").slots["l.weight"].dtype == "BF16"


def test_averaging_codes_is_refused(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (saved(save, name, seed, layout="rows")[0] for name, seed in (("a", 1), ("b", 2)))
    assert call("merge", "uniform", a, b, "--out", tmp_path / "out") == 1
    assert "'l.weight' holds fp8 codes, with 'l.weight_scale'" in capsys.readouterr().err


def test_scales_that_do_not_fit_are_refused(save: Save) -> None:
    path, _ = saved(save, "a", 1, layout="blocks")
    (path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="blocks of 128 × 128"):
        _ = Dequantized(Checkpoint(path))["l.weight"]


def test_tied_tensors_are_merged_once_and_stay_tied(save: Save, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [
        save(
            name,
            {"embed": rng.normal(size=(4, 3)).astype(np.float32)},
            metadata={"format": "pt", "head": "embed"},
        )
        for name in ("a", "b")
    ]
    assert set(Checkpoint(paths[0])) == {"embed", "head"}
    out = tmp_path / "out"
    assert call("merge", "slerp", *paths, "--out", out, "--quiet") == 0
    written = Checkpoint(out)
    assert written.metadata["head"] == "embed"
    assert written.files[0].stat().st_size < 8 + 200 + 4 * 3 * 4 * 2
    np.testing.assert_array_equal(written["head"], written["embed"])
