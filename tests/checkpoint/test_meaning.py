"""Same shapes, other meaning: what is refused, what is warned of, and what is no difference at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.api import combine, merge
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.config.meaning import check_meaning
from soupkit.checkpoint.config.vocabulary import token_rows
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, CompatibilityError
from soupkit.events import Event, Warned
from soupkit.manifest import Manifest
from soupkit.merge.mixture import uniform

Save = Callable[..., Path]
NAMES = ("a", "b")
CLIP = {"embed_dim": 8, "vision_cfg": {"layers": 2, "head_width": 32}, "text_cfg": {"heads": 8}}

MEANINGLESS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "heads": ({"num_attention_heads": 4}, {"num_attention_heads": 8}),
    "heads of gpt2": ({"n_head": 4}, {"n_head": 8}),
    "heads of bart": ({"decoder_attention_heads": 4}, {"decoder_attention_heads": 8}),
    "heads of a tower": (
        {"vision_config": {"num_attention_heads": 4}},
        {"vision_config": {"num_attention_heads": 8}},
    ),
    "grouped heads": ({"num_key_value_heads": 2}, {"num_key_value_heads": 4}),
    "head width": ({"head_dim": 4}, {"head_dim": 8}),
    "activation": ({"hidden_act": "gelu"}, {"hidden_act": "quick_gelu"}),
    "activation of t5": ({"feed_forward_proj": "relu"}, {"feed_forward_proj": "gated-gelu"}),
    "kinds of layers": ({"layer_types": ["a", "b"]}, {"layer_types": ["b", "a"]}),
    "rotary share": ({"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 1.0}),
    "timm's heads": ({"model_args": {"num_heads": 2}}, {"model_args": {"num_heads": 4}}),
    "timm's pooling": ({"global_pool": "avg"}, {"global_pool": "token"}),
    "order of norms": ({"do_layer_norm_before": True}, {"do_layer_norm_before": False}),
    "quick_gelu": ({"model_cfg": CLIP}, {"model_cfg": CLIP | {"quick_gelu": True}}),
    "open_clip's heads": (
        {"model_cfg": CLIP},
        {"model_cfg": CLIP | {"vision_cfg": {"layers": 2, "head_width": 64}}},
    ),
    "classes": ({"id2label": {"0": "cat", "1": "dog"}}, {"id2label": {"0": "dog", "1": "cat"}}),
    "classes by name": ({"label2id": {"cat": 0, "dog": 1}}, {"id2label": {"0": "dog", "1": "cat"}}),
    "timm's classes": ({"label_names": ["cat", "dog"]}, {"label_names": ["dog", "cat"]}),
}
MILD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epsilon": ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}),
    "epsilon of bert": ({"layer_norm_eps": 1e-5}, {"layer_norm_eps": 1e-12}),
    "rope": ({"rope_theta": 1e4}, {"rope_theta": 5e5}),
    "rope of version 5": ({"rope_parameters": {"rope_theta": 1e4}}, {"rope_theta": 5e5}),
    "rope scaling": ({"rope_scaling": None}, {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    "rope scaling of one": ({"num_attention_heads": 4}, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "rope scaling of one, nested": (
        {"text_config": {}},
        {"text_config": {"rope_parameters": {"rope_type": "yarn"}}},
    ),
    "length": ({"max_position_embeddings": 64}, {"max_position_embeddings": 128}),
    "window": ({"sliding_window": 64}, {"sliding_window": 128}),
    "cap": ({"final_logit_softcapping": 30.0}, {"final_logit_softcapping": 50.0}),
    "multiplier": ({"residual_multiplier": 1.0}, {"residual_multiplier": 0.2}),
    "padding": ({"pad_token_id": 0}, {"pad_token_id": 1}),
    "kinds of gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu_new"}),
    "colours": ({"pretrained_cfg": {"mean": [0.5]}}, {"pretrained_cfg": {"mean": [0.4]}}),
    "other classes": ({"id2label": {"0": "cat"}}, {"id2label": {"0": "lion"}}),
    "tied": ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
    "nested": ({"text_config": {"rope_theta": 1e4}}, {"text_config": {"rope_theta": 1e5}}),
}
NOTHING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "names": ({"_name_or_path": "x", "transformers_version": "4"}, {"_name_or_path": "y",
    "transformers_version": "5"}),
    "dtype": ({"torch_dtype": "float32", "use_cache": True}, {"dtype": "bfloat16", "use_cache": False}),
    "not said": ({"num_attention_heads": 4}, {"head_dim": None}),
    "dropout": ({"attention_dropout": 0.0}, {"attention_dropout": 0.1}),
    "one activation": ({"hidden_act": "silu"}, {"hidden_act": "swish"}),
    "number": ({"rope_theta": 10000}, {"rope_theta": 10000.0}),
    "versions": (
        {"rope_theta": 1e4, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
    ),
    "scaling of both versions": (
        {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
    ),
    "no scaling of one": ({"rope_scaling": None}, {}),
    "only a base of one": ({}, {"rope_parameters": {"rope_theta": 1e4}}),
    "generic labels": ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {"id2label": {"0": "dog",
    "1": "cat"}}),
    "training of CLIP": (
        {"model_cfg": CLIP}, {"model_cfg": CLIP | {"vision_cfg": CLIP["vision_cfg"] | {"patch_dropout": 0.5}}}  # type: ignore[operator]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_leaves_no_meaning_is_refused_unless_insisted_on(name: str) -> None:
    with pytest.raises(CompatibilityError, match=r"in a, but .* in b|in b, but") as error:
        check_meaning(MEANINGLESS[name], NAMES)
    assert "--mismatch warn" in str(error.value)
    assert len(check_meaning(MEANINGLESS[name], NAMES, mismatch="warn")) == 1


@pytest.mark.parametrize("name", MILD)
def test_what_is_mild_is_said(name: str) -> None:
    (remark,) = check_meaning(MILD[name], NAMES)
    assert "in a, but" in remark
    assert "in b" in remark


@pytest.mark.parametrize("name", NOTHING)
def test_no_false_alarm(name: str) -> None:
    assert check_meaning(NOTHING[name], NAMES) == ()


def saved(save: Save, name: str, config: dict[str, Any], **files: str) -> Path:
    path = save(name, {"w": np.full((2, 2), len(name), np.float32)})
    (path / "config.json").write_text(json.dumps({"architectures": ["Net"]} | config))
    for file, text in files.items():
        (path / file.replace("__", ".")).write_text(text)
    return path


METHODS = [
    ("uniform", {}),
    ("slerp", {}),
    ("ties", {"base": True}),
    ("ema", {"decay": 0.5}),
    ("interpolate", {}),
]


@pytest.mark.parametrize(("method", "options"), METHODS, ids=[method for method, _ in METHODS])
def test_every_merge_refuses_and_warns(
    method: str, options: dict[str, Any], save: Save, tmp_path: Path
) -> None:
    plain = {"num_attention_heads": 2, "rope_theta": 1e4}
    refs = [saved(save, "a", plain), saved(save, "bb", plain | {"rope_theta": 5e5})]
    if "base" in options:
        options = {"base": str(saved(save, "base", plain))}
    events: list[Event] = []
    merge(refs, tmp_path / "out", method=method, report=events.append, **options)
    (said,) = (event.message for event in events if isinstance(event, Warned))
    assert said.startswith("rope_theta is 10000.0 in")
    assert Manifest.read(tmp_path / "out").notes["remarks"] == [said]
    refs.append(saved(save, "ccc", plain | {"num_attention_heads": 1}))
    chosen = refs[::2]
    with pytest.raises(CompatibilityError, match="num_attention_heads"):
        merge(chosen, tmp_path / "none", method=method, **options)
    assert not (tmp_path / "none").exists()
    merge(chosen, tmp_path / "insisted", method=method, mismatch="warn", **options)


COMMANDS = [
    "merge weighted a b --coefficients 0.5,0.5 --out x",
    "merge swa a b --out x",
    "merge greedy a b --data digits --out x",
    "merge learned a b --data digits --out x",
    "merge mehl a b --data digits --out x",
    "merge twa a b --data digits --out x",
    "merge evolve a b --data digits --out x",
    "merge karcher a b --out x",
    "merge mergekit recipe.yaml --out x",
    "align a b --out x",
    "barrier a b --data digits",
    "curve fit a b --data digits --out x",
    "plane a b c --data digits --out x",
    "ensemble a b --data digits",
    "extract-lora b --base a --out x",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_combines_refuses(
    command: str,
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, heads in (("a", 2), ("b", 4), ("c", 2)):
        saved(save, name, {"num_attention_heads": heads})
    (tmp_path / "recipe.yaml").write_text(
        "merge_method: linear\nmodels: [{model: ./a, parameters: {weight: 1}}, {model: ./b, "
        "parameters: {weight: 1}}]"
    )
    monkeypatch.chdir(tmp_path)
    assert run_command_line(command.split()) == 1
    error = capsys.readouterr().err
    assert "num_attention_heads is " in error
    assert "--mismatch warn" in error
    assert not (tmp_path / "x").exists()


def test_memory_is_no_way_around(save: Save) -> None:
    refs = [saved(save, "a", {"num_attention_heads": 2}), saved(save, "b", {"num_attention_heads": 4})]
    with pytest.raises(CompatibilityError, match="num_attention_heads"):
        combine(refs, uniform(["a", "b"]))


def test_stacks_compare_the_models_of_their_layers(save: Save, tmp_path: Path) -> None:
    paths = []
    for name, heads, kinds in (("a", 2, ["x", "y"]), ("b", 2, ["y", "x"]), ("c", 4, ["x", "y"])):
        path = save(name, {f"layers.{layer}.w": np.full((2, 2), ord(name), np.float32) for layer in range(2)})
        config = {"num_hidden_layers": 2, "num_attention_heads": heads, "layer_types": kinds}
        (path / "config.json").write_text(json.dumps(config))
        paths.append(path)
    options = {"method": "passthrough", "layers": ["0:2", "0:2"]}
    merge(paths[:2], tmp_path / "out", **options)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "out/config.json").read_text())["layer_types"] == ["x", "y", "y", "x"]
    with pytest.raises(CompatibilityError, match="num_attention_heads"):
        merge(paths[::2], tmp_path / "none", **options)  # type: ignore[arg-type]


# Tokenizers and processors.

BPE = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}
MOVED = {"model": {"vocab": {"b": 0, "a": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}
LONGER = {"model": {"vocab": {"a": 0, "b": 1, "c": 3}}, "added_tokens": [{"id": 2, "content": "<end>"}]}
UNIGRAM = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}
VOCABULARIES = [
    ("tokenizer__json", json.dumps(BPE), json.dumps(MOVED), json.dumps(LONGER)),
    (
        "tokenizer__json",
        json.dumps(UNIGRAM),
        json.dumps(MOVED),
        json.dumps({"model": {"vocab": [["a", -3.0]]}}),
    ),
    ("vocab__json", '{"a": 0, "b": 1}', '{"a": 1, "b": 0}', '{"a": 0, "b": 1, "c": 2}'),
    ("vocab__txt", "a\nb\n", "b\na\n", "a\nb\nc\n"),
]


@pytest.mark.parametrize(("file", "first", "moved", "longer"), VOCABULARIES)
def test_the_same_token_must_be_the_same_row(
    file: str, first: str, moved: str, longer: str, save: Save
) -> None:
    a, b, c = (
        Checkpoint(saved(save, name, {}, **{file: text})) for name, text in zip("abc", (first, moved, longer))
    )
    assert token_rows(a.directory / file.replace("__", "."))["b"] == 1
    with pytest.raises(CompatibilityError, match=r"token 'a' is row 0|token 'b' is row 1"):
        check_compatible([a, b])
    assert "is row" in check_compatible([a, b], mismatch="warn").remarks[0]
    (remark,) = check_compatible([a, c]).remarks
    assert "has another" in remark


@pytest.mark.parametrize(
    "file", ["chat_template__jinja", "preprocessor_config__json", "modeling_own__py", "spiece__model"]
)
def test_companions_that_differ_are_told(file: str, save: Save) -> None:
    a, b, same = (
        Checkpoint(saved(save, name, {}, **{file: text}))
        for name, text in (("a", "1"), ("b", "2"), ("c", "1"))
    )
    (remark,) = check_compatible([a, b]).remarks
    assert file.replace("__", ".") in remark
    assert check_compatible([a, same]).remarks == ()


@pytest.mark.parametrize(
    "text", ["", "[1", "[]", "3", '{"model": 3}', '{"model": {"vocab": [3]}, "added_tokens": 1}']
)
def test_what_is_no_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        token_rows(tmp_path / "tokenizer.json")


def test_architectures_by_other_names(save: Save) -> None:
    names = ("LlamaForCausalLM", "LLaMAForCausalLM", "TFLlamaForCausalLM")
    opened = [Checkpoint(saved(save, name, {"architectures": [name]})) for name in names]
    assert check_compatible(opened).remarks == ()


def test_tokenizers_of_views_are_compared_too(save: Save, tmp_path: Path) -> None:
    paths = []
    for name, rows, text in (("a", 2, "a\nb\n"), ("b", 3, "b\na\nc\n")):
        paths.append(save(name, {"embed.weight": np.ones((rows, 2), np.float32)}))
        (paths[-1] / "config.json").write_text("{}")
        (paths[-1] / "vocab.txt").write_text(text)
        (paths[-1] / "config.json").write_text(json.dumps({"vocab_size": rows}))
    with pytest.raises(CompatibilityError, match="token"):
        merge(paths, tmp_path / "out", method="slerp", embedding="pad")
