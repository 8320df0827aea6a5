"""`merge mergekit` on checkpoints: whose configuration goes along, adapters, vocabularies, and what is
recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

Save = Callable[..., Path]
LAYERS, ROWS = 3, 4


def call(*words: Any) -> int:
    return run_command_line([str(word) for word in words])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files name models by where they are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{i}.mlp.weight" for i in range(LAYERS)]
    return {name: rng.normal(size=(ROWS, 4)).astype(np.float32) for name in names}


@pytest.fixture(autouse=True)
def models(place: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        (place / name).mkdir()
        write_tensors(place / name, tensors(seed))
        config = {
            "architectures": ["Net"],
            "num_hidden_layers": LAYERS,
            "vocab_size": ROWS,
            "rms_norm_eps": seed / 10,
        }
        (place / name / "config.json").write_text(json.dumps(config))
        vocabulary = {"model": {"vocab": {f"t{row}": row for row in range(ROWS)}}, "added_tokens": []}
        (place / name / "tokenizer.json").write_text(json.dumps(vocabulary))
        (place / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": name}))


def adapter(name: str = "ad", *, base: str = "base") -> dict[str, np.ndarray]:
    """An adapter on every layer; the changes that it makes."""
    rng, changes = np.random.default_rng(9), {}
    Path(name).mkdir()
    factors: dict[str, np.ndarray] = {}
    for i in range(LAYERS):
        low, high = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(ROWS, 2)).astype(np.float32)
        factors[f"base_model.model.model.layers.{i}.mlp.lora_A.weight"] = low
        factors[f"base_model.model.model.layers.{i}.mlp.lora_B.weight"] = high
        changes[f"model.layers.{i}.mlp.weight"] = 2.0 * high.astype(float) @ low.astype(float)
    write_tensors(Path(name), factors, file_name="adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base}
    (Path(name) / "adapter_config.json").write_text(json.dumps(config))
    return changes


def merged(text: str, *more: str, out: str = "out") -> Checkpoint:
    Path("file.yml").write_text(text)
    assert call("merge", "mergekit", "file.yml", "--out", out, *more) == 0
    return Checkpoint(Path(out))


def refused(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    Path("file.yml").write_text(text)
    assert call("merge", "mergekit", "file.yml", "--out", "out") in (1, 2)
    assert not Path("out").exists()
    return capsys.readouterr().err


def config_of(out: str = "out") -> tuple[float, str]:
    config, tokenizer = (
        json.loads(Path(out, name).read_text()) for name in ("config.json", "tokenizer_config.json")
    )
    return config["rms_norm_eps"], tokenizer["chat_template"]


TWO = "models: [{model: a}, {model: b}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("merge_method: ties\nbase_model: base\n" + TWO + "parameters: {weight: 1}\n", (0.0, "base")),
        ("merge_method: linear\nbase_model: b\n" + TWO + "parameters: {weight: 1}\n", (0.2, "b")),
        ("merge_method: linear\n" + TWO + "parameters: {weight: 1}\n", (0.1, "a")),
        ("merge_method: linear\ntokenizer_source: b\n" + TWO + "parameters: {weight: 1}\n", (0.2, "b")),
        ("merge_method: slerp\nbase_model: b\n" + TWO + "parameters: {t: 0.3}\n", (0.2, "b")),
        ("merge_method: karcher\nbase_model: base\n" + TWO, (0.0, "base")),
        (
            "merge_method: passthrough\nbase_model: b\nslices: [{sources: [{model: a, layer_range: [0, "
            "2]}]}]\n",
            (0.2, "b"),
        ),
    ],
)
def test_configuration_and_tokenizer_are_those_of_base_model(text: str, expected: tuple[float, str]) -> None:
    merged(text, "--quiet")
    assert config_of() == expected


def test_an_adapter_lands_on_the_model_before_the_plus(capsys: pytest.CaptureFixture[str]) -> None:
    changes = adapter()
    text = (
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a+ad, parameters: "
        "{weight: 0.5}}]\n"
    )
    found = merged(text)
    assert "names base as its base, and is merged into a" in capsys.readouterr().err
    old, one = tensors(0), tensors(1)
    for name, value in old.items():
        expected = value + 0.5 * (one[name] + changes.get(name, 0.0) - value)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    manifest = Manifest.read(Path("out"))
    assert [entry["reference"].split("/")[0] for entry in manifest.inputs] == ["a", "ad", "base"]
    assert manifest.notes["references"] == [[0, 1], [2]]
    assert manifest.notes["mergekit"]["text"] == text
    assert call("verify", "out", "--inputs", "--quiet") == 0
    assert call("reproduce", "out", "--out", "again", "--quiet") == 0


@pytest.mark.parametrize(
    "model",
    ["a+ad", "{model: a, lora: ad}", "{model: {path: a}, lora: {path: ad}}"],
    ids=["text", "short", "long"],
)
@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_an_adapter_is_baked_in(method: str, model: str) -> None:
    changes = adapter(base="a")
    weight = ", parameters: {weight: 1}" if method == "linear" else ""
    found = merged(f"merge_method: {method}\nmodels: [{{model: {model}{weight}}}]\n", "--quiet")
    for name, value in tensors(1).items():
        np.testing.assert_allclose(found[name], value + changes.get(name, 0.0), rtol=1e-5, atol=1e-6)
    assert call("reproduce", "out", "--out", "again", "--quiet") == 0


def test_a_range_of_layers_is_a_model_of_that_depth() -> None:
    ranges = "{model: a, layer_range: [0, 2], parameters: {weight: 1}}, {model: b, layer_range: [1, 3]}"
    found = merged(
        f"merge_method: linear\nslices: [{{sources: [{ranges}], parameters: {{weight: 3}}}}]\n", "--quiet"
    )
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 2
    one, two = tensors(1), tensors(2)
    for layer in range(2):
        expected = (
            one[f"model.layers.{layer}.mlp.weight"] + 3 * two[f"model.layers.{layer + 1}.mlp.weight"]
        ) / 4
        np.testing.assert_allclose(found[f"model.layers.{layer}.mlp.weight"], expected, rtol=1e-6)
    assert len(found) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: passthrough\nmodels: [{model: a+nothing}]\n", "is no PEFT directory here"),
        ("merge_method: passthrough\nmodels: [{model: ad}]\n", "is an adapter, expected a model"),
        ("merge_method: passthrough\nmodels: [{model: a@v1}]\n", "is here, and has no revision 'v1'"),
        ("merge_method: passthrough\nmodels: [{model: nothing}]\n", "no such file or directory"),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [1, 4]}]}]\n",
            "has no layers 1 to 3",
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 9]}]}]\nparameters: "
            "{weight: 1}\n",
            "has no layers 0 to 8",
        ),
    ],
)
def test_what_is_not_there_is_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    adapter()
    assert message in refused(text, capsys)


def reorder(name: str, vocabulary: dict[str, int] | list[Any] | None) -> None:
    path = Path(name, "tokenizer.json")
    if vocabulary is None:
        path.unlink()
    else:
        path.write_text(json.dumps({"model": {"vocab": vocabulary}}))


ASKED = "merge_method: linear\nbase_model: a\ntokenizer_source: base\n" + TWO + "parameters: {weight: 1}\n"


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"t0": 0, "t1": 2, "t2": 1, "t3": 3}, "2 tokens have other rows, for example 't1': 1 and 2"),
        ({"t0": 0, "t1": 1, "t2": 2}, "1 tokens are missing and 0 others there, for example 't3'"),
        ([["t1", 0.0], ["t0", 0.0], ["t2", 0.0], ["t3", 0.0]], "2 tokens have other rows"),
    ],
)
def test_vocabularies_in_another_order_are_refused_where_a_tokenizer_is_asked_for(
    vocabulary: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reorder("b", vocabulary)
    assert message in refused(ASKED, capsys)
    plain = ASKED.replace("tokenizer_source: base\n", "")
    if "other rows" in message:  # mergekit merges rows of other tokens in silence
        assert "token 't" in refused(plain, capsys)
    merged(plain, "--quiet", "--mismatch", "warn")


def test_one_vocabulary_is_followed_and_rows_without_a_token_are_not_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    merged(ASKED.replace("tokenizer_source: base", "tokenizer: {source: base}"), "--quiet")
    assert config_of() == (0.1, "a")
    for name in ("a", "b"):
        reorder(name, {"t0": 0, "t1": 1, "t2": 2})
    Path("out").rename("other")
    assert "has 4 rows of embeddings for 3 tokens" in refused(ASKED, capsys)
    for name in ("a", "b"):
        reorder(name, None)
    assert "no tokenizer" in refused(ASKED, capsys)


def test_files_that_are_not_text(capsys: pytest.CaptureFixture[str]) -> None:
    Path("latin.yml").write_bytes("merge_method: lin\xe9ar\n".encode("latin-1"))
    assert call("merge", "mergekit", "latin.yml", "--out", "out") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert call("merge", "mergekit", ".", "--out", "out") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_options_of_the_commands_that_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """What a mergekit file says can be said without one."""
    words = ["merge", "slerp", "a", "b", "--t", "0.5", "--out", "out", "--quiet"]
    assert call(*words, "--layers", "0:1,1:3", "--config-from", "base") == 0
    assert config_of() == (0.0, "base")
    assert call(*words[:-3], "--out", "x", "--layers", "0:1", "--layers", "0:2", "--quiet") in (1, 2)
    assert "expected one depth" in capsys.readouterr().err
    assert call(*words[:-3], "--out", "x", *["--layers", "0:1"] * 3, "--quiet") in (1, 2)
    assert "3 layer ranges for 2 checkpoints" in capsys.readouterr().err
    Path("base/config.json").write_text('{"architectures": ["Other"]}')
    assert call(*words[:-3], "--out", "x", "--config-from", "base", "--quiet") == 1
    assert "config_from base: is a Other" in capsys.readouterr().err
