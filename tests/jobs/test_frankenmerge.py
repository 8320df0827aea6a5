"""Layer ranges stacked into one model, and vocabularies of different sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.source import read_chunk
from soupkit.checkpoint.views.resized import match_vocabularies
from soupkit.checkpoint.views.stacked import Part, Stacked, main_stack
from soupkit.cli.app import run_command_line
from soupkit.errors import CompatibilityError, RecipeError

Save = Callable[..., Path]
Tensors = dict[str, np.ndarray]


def call(*words: Any) -> int:
    return run_command_line([str(word) for word in words])


def model(seed: int, *, layers: int = 3, rows: int = 10) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (rows, 4), "model.norm.weight": (4,), "lm_head.weight": (rows, 4)}
    shapes |= {f"model.layers.{i}.mlp.weight": (4, 4) for i in range(layers)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def saved(save: Save, name: str, seed: int, **options: Any) -> Path:
    tensors = model(seed, **options)
    path = save(name, tensors)
    config = {
        "architectures": ["Net"],
        "num_hidden_layers": options.get("layers", 3),
        "vocab_size": options.get("rows", 10),
        "layer_types": ["full"] * options.get("layers", 3),
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_layers_are_stacked_and_numbered_anew(save: Save, tmp_path: Path) -> None:
    a, b = saved(save, "a", 1), saved(save, "b", 2)
    out = tmp_path / "out"
    assert (
        call("merge", "passthrough", a, b, "--layers", "0:3", "--layers", "1:3", "--out", out, "--quiet") == 0
    )
    written, first, second = Checkpoint(out), model(1), model(2)
    expected = {
        "model.embed_tokens.weight": first["model.embed_tokens.weight"],
        "model.norm.weight": second["model.norm.weight"],
        "lm_head.weight": second["lm_head.weight"],
        **{f"model.layers.{i}.mlp.weight": first[f"model.layers.{i}.mlp.weight"] for i in range(3)},
        **{f"model.layers.{i + 2}.mlp.weight": second[f"model.layers.{i}.mlp.weight"] for i in (1, 2)},
    }
    assert set(written) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value)
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 5
    assert config["vocab_size"] == 10
    assert config["layer_types"] == ["full"] * 5
    assert call("verify", out, "--inputs", "--quiet") == 0
    assert call("reproduce", out, "--out", tmp_path / "again", "--quiet") == 0


def test_one_checkpoint_may_come_twice_and_be_scaled(save: Save, tmp_path: Path) -> None:
    a = saved(save, "a", 1)
    out = tmp_path / "out"
    layers = ["--layers", "0:2", "--layers", "1:3"]
    assert (
        call("merge", "passthrough", a, a, *layers, "--set", "* @2-3: {scale: 0.5}", "--out", out, "--quiet")
        == 0
    )
    written, source = Checkpoint(out), model(1)
    np.testing.assert_array_equal(written["model.layers.1.mlp.weight"], source["model.layers.1.mlp.weight"])
    np.testing.assert_array_equal(
        written["model.layers.2.mlp.weight"], source["model.layers.1.mlp.weight"] / 2
    )
    np.testing.assert_array_equal(written["model.norm.weight"], source["model.norm.weight"])


def test_a_model_stacked_on_itself_counts_once(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = saved(save, "a", 1)
    assert (
        call("merge", "passthrough", a, a, "--layers", "0:2", "--layers", "1:3", "--out", tmp_path / "out")
        == 0
    )
    assert "counts twice" not in capsys.readouterr().err


def test_parts_of_stacked_tensors_can_be_read() -> None:
    stacked = Stacked([Part(model(1), 0, 1), Part(model(2), 2, 3)], reference="x")
    part = np.empty(5, np.float32)
    read_chunk(stacked, "model.layers.1.mlp.weight", 3, part)
    np.testing.assert_array_equal(part, model(2)["model.layers.2.mlp.weight"].reshape(-1)[3:8])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layers", "0:3"], "1 layer ranges for 2 checkpoints"),
        (["--layers", "0:3", "--layers", "1:4"], "has no layers 1 to 3"),
        (["--layers", "0:3", "--layers", "2:2"], "has no layers"),
        (["--layers", "0:3", "--layers", "all"], "expected START:STOP"),
    ],
)
def test_ranges_are_checked(
    more: list[str], message: str, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = saved(save, "a", 1), saved(save, "b", 2)
    assert call("merge", "passthrough", a, b, *more, "--out", tmp_path / "out") in (1, 2)
    assert message in capsys.readouterr().err


def test_which_layers_are_stacked_must_be_clear() -> None:
    assert main_stack({"a.blocks.0.w": 0, "a.blocks.1.w": 0, "b.0.w": 0}) == "a.blocks"  # type: ignore[dict-item]
    with pytest.raises(RecipeError, match="not clear"):
        main_stack({"a.0.w": 0, "b.0.w": 0})  # type: ignore[dict-item]
    with pytest.raises(RecipeError, match="not clear"):
        main_stack({"w": 0})  # type: ignore[dict-item]


# Vocabularies.


def test_different_vocabularies_are_an_error_that_names_the_sizes(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = saved(save, "a", 1), saved(save, "b", 2, rows=12)
    assert call("merge", "slerp", a, b, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "2 tensors have different numbers of rows" in error
    assert "a: 10" in error
    assert "b: 12" in error
    assert "--embedding pad" in error


@pytest.mark.parametrize(("policy", "rows"), [("pad", 12), ("intersect", 10)])
def test_vocabularies_are_padded_or_cut(policy: str, rows: int, save: Save, tmp_path: Path) -> None:
    base, a, b = saved(save, "base", 0), saved(save, "a", 1), saved(save, "b", 2, rows=12)
    out = tmp_path / "out"
    options = ["--base", base, "--weight", "0.5,0.25", "--embedding", policy, "--out", out, "--quiet"]
    assert call("merge", "task-arithmetic", a, b, *options) == 0
    name = "model.embed_tokens.weight"
    old, one, two = (tensors[name].astype(float) for tensors in (model(0), model(1), model(2, rows=12)))
    expected = old + 0.5 * (one - old) + 0.25 * (two[:10] - old)
    if policy == "pad":
        expected = np.concatenate([expected, two[10:]])
    np.testing.assert_allclose(Checkpoint(out)[name], expected, rtol=1e-5, atol=1e-6)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
    assert call("verify", out, "--inputs", "--quiet") == 0
    assert call("reproduce", out, "--out", tmp_path / "again", "--quiet") == 0


def test_other_differences_are_still_errors() -> None:
    a, b = model(1), model(2)
    b["model.norm.weight"] = np.zeros(5, np.float32)
    views, chosen = match_vocabularies([a, b], "pad")
    assert chosen is None
    assert views == [a, b]
    a = model(1)
    b = model(2, rows=12) | {"model.norm.weight": np.zeros(5, np.float32)}
    assert (
        match_vocabularies([a, b], "pad")[1] is None
    )  # 10 and 12 rows here, 4 and 5 there: no one vocabulary
    with pytest.raises(CompatibilityError):
        match_vocabularies([model(1), model(2, rows=12)], "error")


# Layers that do not fit where they would come to stand.


def test_layers_that_would_not_be_loaded_are_refused(save: Save, tmp_path: Path) -> None:
    """Layer 3 has experts and the configuration does not say why: where it comes to stand, none would be
    loaded."""
    tensors = model(1, layers=4)
    tensors["model.layers.3.experts"] = tensors.pop("model.layers.3.mlp.weight")
    path = save("odd", tensors)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 4}))
    source, first = Checkpoint(path), {"model.layers.0.bias": np.zeros(2, np.float32)}
    with pytest.raises(CompatibilityError, match=r"layer 3 of .*odd has .*does not say why"):
        Stacked([Part(source, 0, 2), Part(source, 2, 4), Part(source, 3, 4)], reference="x")
    assert len(Stacked([Part(source, 0, 2), Part(source, 2, 4)], reference="x"))
    alike = save("first", {**model(1, layers=4), **first})
    (alike / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 4}))
    assert len(Stacked([Part(Checkpoint(alike), 0, 2), Part(Checkpoint(alike), 1, 4)], reference="x"))
    with pytest.raises(CompatibilityError, match=r"model\.layers\..*bias"):
        Stacked([Part(Checkpoint(alike), 1, 3), Part(Checkpoint(alike), 0, 1)], reference="x")


def test_layers_of_other_widths_are_refused(save: Save) -> None:
    wide = {name: np.concatenate([value, value]) for name, value in model(2).items()}
    with pytest.raises(CompatibilityError, match=r"has shape \[8, 4\]"):
        Stacked([Part(model(1), 0, 2), Part(wide, 1, 3)], reference="x")
