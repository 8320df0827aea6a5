"""Valid inputs of every parser, which the fuzzer mutates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from soupkit.manifest import FORMAT

TENSORS = {"a": np.ones(3, np.float32), "model.layers.0.mlp.weight": np.zeros((2, 2), np.float32)}
FACTORS = {
    f"base_model.model.q_proj.lora_{side}.weight": np.ones(shape, np.float32)
    for side, shape in (("A", (2, 4)), ("B", (4, 2)))
}
STATE_DICT = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4).half(), "c": torch.tensor(3)}
HEADERS: list[tuple[Any, int]] = [
    ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4),
    ({"__metadata__": {"format": "pt"}, "a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]},
      "b.c": {"dtype": "U8", "shape": [2, 0], "data_offsets": [6, 6]}}, 6),
    ({"x": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}, "y": {"dtype": "F8_E4M3", "shape": [1, 1,
    2],
      "data_offsets": [8, 10]}}, 10),
]  # fmt: skip
INDEXES: list[Any] = [
    {"metadata": {"total_size": 28}, "weight_map": dict.fromkeys(TENSORS, "shard.safetensors")},
    {"weight_map": dict.fromkeys(TENSORS, "shard.safetensors")},
]
_SCORE = {"value": 0.9, "standard_error": 0.01, "num_examples": 100}
_INPUTS = [
    {"reference": "../a", "path": "../a", "content": "0" * 32, "companions": "1" * 32},
    {
        "reference": "owner/name@main",
        "content": "2" * 32,
        "commit": "3" * 40,
        "sha256": {"x.safetensors": "4" * 64},
    },
]
_MADE = {
    "format": FORMAT,
    "soupkit": "1.0",
    "versions": {"numpy": "2.0"},
    "created": "2026-01-01T00:00:00+00:00",
}
MANIFESTS: list[Any] = [
    {"command": "merge uniform", "recipe": {"refs": ["a", "b"], "out": "soups/u", "dtype": "auto",
    "bn": "keep"},
     "inputs": _INPUTS, "outputs": {"content": "5" * 32, "files":
     {"model.safetensors": {"bytes": 100, "xxh3-128": "6"}}},
     "metrics": {"held_out": {"top1": _SCORE, "loss": _SCORE}, "test": {"top1": _SCORE}}, "trace": [],
     "notes": {},
     "mixture": {"ingredients": ["a", "b"], "coefficients": [[0.5], [0.5]], "divisor": 1, "blocks": None},
     **_MADE},
    {"command": "merge greedy", "recipe": {"refs": ["a"], "out": "g", "task": None}, "inputs": _INPUTS[:1],
     "outputs": {}, "metrics": {"held_out": {"top1": _SCORE}}, "mixture": None,
     "trace": [{"candidate": "a", "accepted": True, "held_out": {"top1": _SCORE}, "step": 1, "value": 0.9}],
     "notes": {"picks": ["a"], "members": ["run-000"], "split": {"held_out": 10}, "selected_on": "held_out",
     "against_uniform": {"kept_uniform": True, "difference": 0.1}, "warnings": ["x"], "bends": ["b"]},
     **_MADE},
    {"command": "curve", "recipe": {"a": "x", "b": "y", "out": "c"}, "inputs": [], "outputs": {},
    "metrics": {},
     "mixture": None, "trace": [{"epoch": 1, "loss": 0.5, "seconds": 1.5}], "notes": {"bends": ["bend-1"],
     "hyperparameters": {"lr": 0.1}, "history": [{"epoch": 1, "loss": 0.5}]}, "given": {"data": "x"},
     **_MADE},
]  # fmt: skip
RECIPES = [
    """description: Average.
variables: {out: runs/example, seed: 0, list: [a, b]}
steps:
  sweep: {command: finetune-sweep, base: runs/base, data: digits, seed: "${seed}", num_runs: 2, out:
  "${out}/sweep",
          lr: "log(1e-5,1e-3) if optimizer=adamw else log(1e-3,1e-1)", optimizer: "choice(sgd,adamw)"}
  soup:
    command: merge uniform
    refs: ["${out}/sweep", "x{1..3}"]
    out: ${out}/uniform
    max_shard_size: 5GB
    expect: []
""",
    "command: merge uniform\nrefs: [a, b]\nout: soup\ndtype: float32\nexpect: outputs.content == 1\n",
    "steps:\n  one: {command: inspect, refs: &r [a]}\n  two: {command: inspect, refs: *r, tensors: true}\n",
    "command: evaluate\nrefs: [a, b]\ndata: digits\nout: scores\n",
    "command: merge ties\nrefs: [a]\nbase: b\nout: c\ndensity: 0.5\nset: ['mlp: {density: [0.2, 0.8]}']\n",
]
VARIABLES = ["seed=3", "out=runs/x", "sweep.num_runs=16", "soup.refs=[a, b]", "list={a: 1}", "sweep.lr=1e-3"]
SETTINGS = [
    "layers.*.mlp: {weight: [0.2, 0.8]}", "mlp @0-1: {weight: {0: 0.5, c: [1, 2]}}",
    "a @before?: {coefficient: 1e-3}",
    "{weight: 0.5}", "'a': {weight: 1, coefficient: {b: true}}", "model.layers @after: {weight: .5}",
    "*: {weight: 1}",
]  # fmt: skip
REFERENCES = [
    "a/b@step{1000..3000..1000}", "hf://owner/name@main/folder", "runs/{a,b}/x", "owner/name", "~/x",
    "x{01..10}",
    "./a/../b", "*/model.safetensors", "a{1..3}b{x,y,z}", "hf://datasets/x", "x.safetensors", "[ab]/?",
]  # fmt: skip
EXPECTATIONS = [
    "held_out.top1 >= 0.9", "test.top1 > own:held_out.top1 - 0.01", "'runs/second try'.x != 1e-3",
    "trace.0.value < 2",
    "a.v1.5.top1 == held_out.top1 + 1", '"x y".z <= -inf', "own:trace.1 > nan", "big > 1",
]  # fmt: skip
RESULT: dict[str, Any] = {
    "metrics": {"held_out": {"top1": _SCORE}, "test": {"top1": _SCORE}}, "inputs": [{"reference": "a.v1.5"}],
    "trace": [{"value": 1}, 2, "x"], "x y": {"z": 1}, "big": 10**400,
}  # fmt: skip
WINDOWS = ["..", "20k..80k", "2e4..0.08M", "40%..80%", "1Mtok..", "last2", "swad", "..1.5e6"]
SIZES = ["500MB", "5GB", "8GiB", "1.5 TiB", "100", " 3 kb ", "0.5G", "00012B"]
RANGES = [
    "lr:log(1e-5,1e-3)", "mixup:uniform(0,0.1)", "epochs:int(4,16)", "weight_decay:choice(0,0.1,0.2)",
    "lr:log(1e-5,1e-3) if optimizer=adamw else log(1e-3,1e-1)", "mixup:0 if epochs<8 and lr>0.1 else "
                                                                "choice(0,0.2)",
    "optimizer:choice(sgd,adamw)", "layer_decay:none", "run_seed:int(0,9)",
    "rand_augment:2 if epochs>=3 else 1",
]  # fmt: skip
ADAPTERS: list[Any] = [
    {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
    "rank_pattern": {"q_proj": 2},
     "revision": None, "fan_in_fan_out": False, "bias": "none", "init_lora_weights": True,
     "base_model_name_or_path": "owner/name",
     "alpha_pattern": {"^q_.*": 8}, "use_rslora": False, "modules_to_save": None},
    {"peft_type": "LORA", "r": 2, "lora_alpha": 0.5, "target_modules": "all-linear", "use_rslora": True,
     "init_lora_weights": "gaussian", "base_model_name_or_path": "x", "revision": "v1", "rank_pattern": {}},
]  # fmt: skip
CONFIGS: list[Any] = [
    {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 4,
    "num_attention_heads": 2,
     "hidden_act": "silu", "layer_types": ["full_attention", "sliding_attention", "full_attention", "x"],
     "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 1e4, "id2label": {"0": "cat",
     "1": "dog"},
     "label2id": {"cat": 0, "dog": 1}, "mlp_only_layers": [1], "max_window_layers": 2,
     "sliding_window_pattern": 2},
    {"model_type": "llama", "num_hidden_layers": 4, "rope_parameters": {"full": {"rope_theta": 1e4}},
    "no_rope_layers":
     [1, 1, 0, 1], "label_names": ["cat", "dog"], "text_config": {"num_hidden_layers": 4,
     "hidden_act": "gelu"},
     "vision_config": {"depth": 3, "num_heads": 2}, "first_k_dense_replace": 1, "moe_layer_freq": 2},
    {"architecture": "vit_tiny", "num_classes": 2, "pretrained_cfg": {"mean": [0.5], "label_names": ["a",
    "b"]},
     "model_args": {"depth": 4}, "hybrid_override_pattern": "M*M-", "full_attention_interval": 2},
    {"model_cfg": {"embed_dim": 8, "quick_gelu": True, "vision_cfg": {"layers": 4},
    "text_cfg": {"layers": 4}},
     "num_layers": 4, "moe_layers_enum": "1,2", "attn_layer_period": 2, "attn_layer_offset": 1},
]  # fmt: skip
TOKENIZERS: list[Any] = [
    {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<pad>"}]},
    {"model": {"type": "Unigram", "vocab": [["a", -1.5], ["b", -2.0]]}, "added_tokens": []},
]
