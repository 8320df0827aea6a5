"""What travels with weights: the dtype that a configuration says, and the folders that it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.layout import companions
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, CompatibilityError
from soupkit.manifest import Manifest

Save = Callable[..., Path]
KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


def call(*words: Any) -> int:
    return run_command_line([str(word) for word in [*words, "--quiet"]])


def saved(save: Save, name: str, kinds: dict[str, str], config: dict[str, Any]) -> Path:
    path = save(name, {key: np.full((2, 2), len(name), KINDS[kind]) for key, kind in kinds.items()})
    (path / "config.json").write_text(json.dumps(config))
    return path


def config_of(path: Path) -> Any:
    return json.loads((path / "config.json").read_text())


CASES: dict[str, tuple[list[dict[str, str]], dict[str, Any], list[str], dict[str, Any]]] = {
    "narrowed": ([{"w": "float32"}] * 2, {"dtype": "float32"}, ["--dtype", "bfloat16"],
    {"dtype": "bfloat16"}),
    "widened": (
        [{"w": "bfloat16"}] * 2, {"torch_dtype": "bfloat16"}, ["--dtype", "float32"],
        {"torch_dtype": "float32"}
    ),
    "mixed": ([{"w": "float16"}, {"w": "bfloat16"}], {"dtype": "float16"}, [], {"dtype": "float32"}),
    "partly mixed": (
        [{"w": "float16", "b": "float16"}, {"w": "bfloat16", "b": "float16"}], {"dtype": "float16"}, [],
        {"dtype": "float32"},
    ),
    "some wider": ([{"w": "bfloat16", "b": "float32"}] * 2, {"dtype": "bfloat16"}, [], {"dtype": "bfloat16"}),
    "nested": (
        [{"w": "float32"}] * 2,
        {"dtype": "float32", "text_config": {"torch_dtype": "float32"},
        "vision_config": {"dtype": "torch.float32"}},
        ["--dtype", "float16"],
        {"dtype": "float16", "text_config": {"torch_dtype": "float16"},
        "vision_config": {"dtype": "torch.float16"}},
    ),
    "as it was": ([{"w": "float32"}] * 2, {"dtype": "float32", "x": 1}, [], {"dtype": "float32", "x": 1}),
    "a lie": ([{"w": "float32"}] * 2, {"dtype": "float16"}, [], {"dtype": "float32"}),
    "left open": ([{"w": "float32"}] * 2, {"dtype": "auto"}, ["--dtype", "float16"], {"dtype": "auto"}),
    "not said": ([{"w": "float32"}] * 2, {"x": "y"}, ["--dtype", "float16"], {"x": "y"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["uniform", "slerp"])
def test_the_configuration_says_what_was_written(method: str, name: str, save: Save, tmp_path: Path) -> None:
    kinds, config, options, expected = CASES[name]
    refs = [saved(save, f"ingredient-{'x' * number}", each, config) for number, each in enumerate(kinds)]
    assert call("merge", method, *refs, *options, "--out", tmp_path / "out") == 0
    assert config_of(tmp_path / "out") == expected
    assert call("verify", tmp_path / "out") == 0


def test_an_unchanged_configuration_keeps_its_bytes(save: Save, tmp_path: Path) -> None:
    refs = [saved(save, name, {"w": "float32"}, {"dtype": "float32"}) for name in ("a", "bb")]
    (refs[0] / "config.json").write_text('{"dtype":"float32" , "b": 1, "a": 2}')
    assert call("merge", "uniform", *refs, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/config.json").read_bytes() == (refs[0] / "config.json").read_bytes()


def test_convert_says_the_dtype_of_the_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save({"w": torch.ones(2, dtype=torch.bfloat16)}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"torch_dtype": "float32"}')
    assert call("convert", folder, "--out", tmp_path / "out") == 0
    assert config_of(tmp_path / "out") == {"torch_dtype": "bfloat16"}


# Modules of sentence-transformers.

MODULES = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Normalize"}]


def embedder(save: Save, name: str, *, dense: float = 1.0, pooling: str = "mean") -> Path:
    path = saved(save, name, {"w": "float32"}, {"architectures": ["Net"]})
    (path / "modules.json").write_text(json.dumps(MODULES))
    save(f"{name}/2_Dense", {"linear.weight": np.full(3, dense, np.float32)})
    for file, text in (
        ("1_Pooling/config.json", f'{{"pooling_mode": "{pooling}"}}'), ("2_Dense/config.json", "{}"),
        ("additional_chat_templates/rag.jinja", "x"), ("onnx/config.json", "{}"), ("2_Dense/.hidden.json",
        "{}"),
        ("modeling_own.py", "raise SystemExit"),
    ):  # fmt: skip
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(text)
    return path


NESTED = [
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "additional_chat_templates/rag.jinja",
]


@pytest.mark.parametrize("method", ["uniform", "slerp"])
def test_modules_travel_whole(method: str, save: Save, tmp_path: Path) -> None:
    refs = [embedder(save, name) for name in ("a", "bb")]
    out = tmp_path / "out"
    assert call("merge", method, *refs, "--out", out) == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*/*") if path.is_file()) == NESTED
    for name in NESTED:
        assert (out / name).read_bytes() == (refs[0] / name).read_bytes()
    assert set(NESTED) <= set(Manifest.read(out).outputs["files"])
    assert call("verify", out, "--inputs") == 0
    assert call("reproduce", out, "--out", tmp_path / "again") == 0
    (out / "2_Dense/model.safetensors").write_bytes(b"other")
    assert call("verify", out) == 1


def test_weights_of_modules_that_differ_are_refused(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refs = [embedder(save, "a"), embedder(save, "bb", dense=2.0)]
    assert call("merge", "uniform", *refs, "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "2_Dense/model.safetensors holds other weights" in error
    assert "REF/2_Dense" in error
    assert not (tmp_path / "out").exists()
    assert call("merge", "uniform", *refs, "--mismatch", "warn", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out/2_Dense/model.safetensors").read_bytes() == (
        refs[0] / "2_Dense/model.safetensors"
    ).read_bytes()


def test_other_pooling_is_told(save: Save) -> None:
    a, b = (Checkpoint(embedder(save, name, pooling=name)) for name in ("cls", "mean"))
    (remark,) = check_compatible([a, b]).remarks
    assert "1_Pooling/config.json" in remark


@pytest.mark.parametrize("path", ["../other", "/etc", "1_Pooling/../../x", "a\\b", "~/x"])
def test_modules_lie_in_their_checkpoint(path: str, save: Save, tmp_path: Path) -> None:
    ref = embedder(save, "a")
    (ref / "modules.json").write_text(json.dumps([{"path": path}]))
    with pytest.raises(CheckpointError, match="no folder beside it"):
        companions(ref)
    assert call("merge", "weighted", ref, "--coefficients", 1, "--out", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_links_out_of_a_checkpoint_are_not_followed(save: Save, tmp_path: Path) -> None:
    ref = embedder(save, "a")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.json").write_text("{}")
    (ref / "modules.json").write_text('[{"path": "4_Link"}]')
    (ref / "4_Link").symlink_to(tmp_path / "secret")
    assert not [path for path in companions(ref) if "key" in path.name]


@pytest.mark.parametrize("text", ["", "{}", "3", '[3, {"path": 4}, {}]', '[{"path": "missing"}]'])
def test_other_files_of_that_name_are_plain_companions(text: str, save: Save) -> None:
    ref = saved(save, "a", {"w": "float32"}, {})
    (ref / "modules.json").write_text(text)
    assert [path.name for path in companions(ref)] == ["config.json", "modules.json"]


def test_two_checkpoints_are_compared_as_wholes(save: Save) -> None:
    a, b = embedder(save, "a"), embedder(save, "b", dense=3.0)
    with pytest.raises(CompatibilityError, match="2_Dense"):
        check_compatible([Checkpoint(a), Checkpoint(b)])
