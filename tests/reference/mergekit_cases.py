"""Small models and mergekit files, for which mergekit's own results are kept in `mergekit.npz`.

`python tests/reference/mergekit_cases.py PYTHON` makes that file again, with the mergekit of another
interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.tensors import write_tensors

RESULTS = Path(__file__).parent / "mergekit.npz"
HIDDEN, INNER, VOCABULARY, LAYERS = 8, 6, 10, 4


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """A tiny Llama."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for i in range(LAYERS):
        for part in "qkvo":
            yield f"model.layers.{i}.self_attn.{part}_proj.weight", (HIDDEN, HIDDEN)
        for part, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            yield f"model.layers.{i}.mlp.{part}_proj.weight", shape
        yield f"model.layers.{i}.input_layernorm.weight", (HIDDEN,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def write_models(folder: Path) -> None:
    """base, a, b, c: the base and three models near it."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "intermediate_size": INNER, "vocab_size": VOCABULARY,
        "num_attention_heads": 2,
        "num_key_value_heads": 2, "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    base = {name: np.random.default_rng(k).normal(size=shape) for k, (name, shape) in enumerate(shapes())}
    for seed, model in enumerate(("base", "a", "b", "c")):
        rng = np.random.default_rng(1000 + seed)
        tensors = {
            name: value + 0.3 * bool(seed) * rng.normal(size=value.shape) for name, value in base.items()
        }
        (folder / model).mkdir(parents=True)
        write_tensors(folder / model, {name: value.astype(np.float32) for name, value in tensors.items()})
        (folder / model / "config.json").write_text(json.dumps(config))
    _write_adapter(folder / "lora", base=folder / "base")


def _write_adapter(folder: Path, *, base: Path) -> None:
    """A LoRA of rank 2 on two matrices of every layer."""
    rng, tensors, sizes = np.random.default_rng(5), {}, dict(shapes())
    for name in (
        f"model.layers.{i}.{part}" for i in range(LAYERS) for part in ("self_attn.q_proj", "mlp.down_proj")
    ):
        rows, columns = sizes[f"{name}.weight"]
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.normal(size=(2, columns)).astype(np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = (0.3 * rng.normal(size=(rows, 2))).astype(
            np.float32
        )
    folder.mkdir()
    write_tensors(folder, tensors, file_name="adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "bias": "none",
        "target_modules": ["q_proj", "down_proj"], "base_model_name_or_path": str(base),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _models(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name, **({"parameters": parameters} if parameters else {})} for name in names]


def _slices(*ranges: tuple[str, int, int]) -> list[dict[str, Any]]:
    return [{"sources": [{"model": name, "layer_range": [start, stop]}]} for name, start, stop in ranges]


def _sliced(*slices: Sequence[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return {"slices": [{"sources": list(sources)} for sources in slices], **options}


def _source(name: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
    return {"model": name, "layer_range": [start, stop], **({"parameters": parameters} if parameters else {})}


GRADIENT = [
    {"filter": "self_attn", "value": [0.0, 0.5, 0.3, 0.7, 1.0]},
    {"filter": "mlp", "value": [1.0, 0.5, 0.7, 0.3, 0.0]},
    {"value": 0.5},
]
SCALE = [{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]
CASES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": _models("a", "b", "c", weight=1.0)},
    "linear-unnormalized": {
        "merge_method": "linear",
        "models": [*_models("a", weight=0.5), *_models("b", weight=[0.1, 0.9])],
        "parameters": {"normalize": False},
    },
    "linear-filters": {
        "merge_method": "linear",
        "models": [*_models("a", weight=[{"filter": "mlp", "value": 0.2}, {"value": 0.7}]), *_models("b",
        weight=1.0)],
    },
    "slerp": {"merge_method": "slerp", "models": _models("a"), "base_model": "base",
    "parameters": {"t": 0.3}},
    "slerp-gradient": {
        "merge_method": "slerp",
        "slices": [{"sources": [{"model": "base", "layer_range": [0, 4]}, {"model": "a", "layer_range": [0,
        4]}]}],
        "base_model": "base",
        "parameters": {"t": GRADIENT},
    },
    "nuslerp": {"merge_method": "nuslerp", "models": [*_models("a", weight=0.7), *_models("b", weight=0.3)]},
    "nuslerp-rows": {
        "merge_method": "nuslerp",
        "models": [*_models("a", weight=0.7), *_models("b", weight=0.3)],
        "base_model": "base",
        "parameters": {"nuslerp_flatten": False},
    },
    "multislerp": {"merge_method": "multislerp", "models": _models("a", "b", "c", weight=1.0),
    "base_model": "base"},
    "karcher": {"merge_method": "karcher", "models": _models("a", "b", "c"), "parameters": {"max_iter": 50}},
    "task-arithmetic": {
        "merge_method": "task_arithmetic",
        "models": [*_models("a", weight=0.4), *_models("b", weight=-0.2), *_models("base")],
        "base_model": "base",
        "parameters": {"lambda": 0.8},
    },
    "ties": {
        "merge_method": "ties",
        "models": [*_models("a", weight=0.4, density=0.5), *_models("b", weight=0.6, density=[0.25, 0.75])],
        "base_model": "base",
    },
    "ties-sum": {
        "merge_method": "ties",
        "models": _models("a", "b", "c", weight=0.5),
        "base_model": "base",
        "parameters": {
            "density": [{"filter": "q_proj", "value": 0.25}, {"value": 0.5}], "normalize": False,
            "lambda": 0.7,
        },
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "models": _models("a", "b", weight=0.5, density=0.5, gamma=0.125),
        "base_model": "base",
    },
    "breadcrumbs-ties": {
        "merge_method": "breadcrumbs_ties",
        "models": _models("a", "b", "c", weight=0.5, density=0.75, gamma=0.125),
        "base_model": "base",
    },
    "model-stock": {"merge_method": "model_stock", "models": _models("a", "b", "c"), "base_model": "base"},
    "model-stock-rows": {
        "merge_method": "model_stock",
        "models": _models("a", "b", "c"),
        "base_model": "base",
        "parameters": {"filter_wise": True},
    },
    "sce": {
        "merge_method": "sce",
        "models": _models("a", "b", "c"),
        "base_model": "base",
        "parameters": {"select_topk": 0.25},
    },
    "nearswap": {"merge_method": "nearswap", "models": _models("a"), "base_model": "base",
    "parameters": {"t": 0.1}},
    "fusion": {"merge_method": "arcee_fusion", "models": _models("a"), "base_model": "base"},
    "dare-everything": {
        "merge_method": "dare_ties",
        "models": _models("a", "b", weight=0.5, density=1.0),
        "base_model": "base",
    },
    "della-everything": {
        "merge_method": "della_linear",
        "models": _models("a", "b", weight=0.5, density=1.0),
        "base_model": "base",
    },
    "passthrough": {"merge_method": "passthrough", "slices": _slices(("a", 0, 3), ("b", 1, 4))},
    "passthrough-scaled": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2], "parameters": {"scale": SCALE}}]},
            {"sources": [{"model": "b", "layer_range": [2, 4], "parameters": {"scale": SCALE}}]},
        ],
    },
    "linear-adapters": {
        "merge_method": "linear",
        "models": [*_models("a+lora", weight=0.3), *_models("b", weight=0.9)],
    },
    "linear-part": _sliced(
        [_source("a", 1, 3, weight=GRADIENT), _source("b", 0, 2, weight=0.4)], merge_method="linear"
    ),
    "linear-slices": _sliced(
        [_source("a", 0, 2, weight=0.2), _source("b", 0, 2, weight=0.8)],
        [_source("a", 1, 4, weight=[0.1, 0.9]), _source("b", 1, 4, weight=0.4)],
        merge_method="linear",
    ),
    "linear-base": {
        "merge_method": "linear", "models": _models("a", "b"), "base_model": "base",
        "parameters": {"weight": 0.5, "normalize": 0.0},
    },
    "slerp-adapter": {
        "merge_method": "slerp", "models": _models("base+lora"), "base_model": "a", "parameters": {"t": 0.3},
    },
    "slerp-slices": {
        "merge_method": "slerp", "base_model": "base", "parameters": {"t": GRADIENT},
        "slices": [
            {"sources": [_source("base", 0, 2), _source("a", 1, 3)], "parameters": {"t": 0.1}},
            {"sources": [_source("base", 2, 4), _source("a", 0, 2)]},
        ],
    },
    "nuslerp-dumped": {
        "merge_method": "nuslerp", "models": [*_models("a", weight=0.7), *_models("b", weight=0.3)],
        "parameters": {"nuslerp_flatten": 0.0, "nuslerp_row_wise": 0.0},
    },
    "karcher-base": {"merge_method": "karcher", "models": _models("a", "b"), "base_model": "base"},
    "task-adapters": {
        "merge_method": "task_arithmetic", "base_model": "base",
        "models": [*_models("base+lora", weight=0.4), *_models("b+lora", weight=0.7)],
    },
    "task-base-adapter": {
        "merge_method": "task_arithmetic", "base_model": "base+lora",
        "models": [*_models("a", weight=0.4), *_models("base", weight=0.7)],
    },
    "ties-slice": _sliced(
        [_source("a", 0, 2, weight=0.3), _source("b", 1, 3, weight=0.4), _source("base", 0, 2)],
        merge_method="ties", base_model="base", parameters={"lambda": [0.5, 1.5]},
    ),
    "model-stock-part": _sliced(
        [_source("a", 1, 3), _source("b", 1, 3), _source("base", 1, 3)], merge_method="model_stock",
        base_model="base"
    ),
    "nearswap-filters": {
        "merge_method": "nearswap", "models": _models("a"), "base_model": "base",
        "parameters": {"t": GRADIENT},
    },
    "passthrough-adapter": {"merge_method": "passthrough", "models": _models("a+lora", scale=SCALE)},
    "passthrough-gradients": _sliced(
        [_source("a", 0, 3, scale=[{"filter": "o_proj", "value": [0.1, 0.9]}, {"filter": "embed",
        "value": 3.0},
                                   {"value": 1.0}])],
        [_source("b+lora", 1, 4, scale=[{"filter": "lm_head", "value": 0.3}, {"value": [2.0, 1.0]}])],
        merge_method="passthrough",
    ),
}  # fmt: skip


def flat(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """All tensors of a result as one vector, in order of their names."""
    return np.concatenate([tensors[name].reshape(-1) for name in sorted(tensors)])


def write_case(name: str, folder: Path) -> Path:
    """The mergekit file of a case, for models in the folder."""

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: "+".join(str(folder / part) for part in item.split("+"))
                if key in ("model", "base_model") and isinstance(item, str)
                else placed(item)
                for key, item in value.items()
            }
        return [placed(item) for item in value] if isinstance(value, list) else value

    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(placed(CASES[name]) | {"dtype": "float32"}))
    return path


def main(python: str) -> None:
    """Run mergekit on every case and keep the results."""
    results: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder)
        for name in CASES:
            command = [
                Path(python).parent / "mergekit-yaml",
                write_case(name, folder),
                folder / f"out-{name}",
            ]
            command += ["--lora-merge-cache", str(folder / "adapted")]
            subprocess.run([str(word) for word in command], check=True)
            results[name] = flat(Checkpoint(folder / f"out-{name}"))
    np.savez_compressed(RESULTS, allow_pickle=False, **results)
    print(f"{len(results)} results, {RESULTS.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
