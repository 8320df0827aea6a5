"""What a configuration says of each layer: lists, sets of numbers, and rules of prefixes and periods.

Read as one value per layer, and written for another order of layers; what has been written is read again to
prove it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from soupkit.jsons import Json, JsonView

Section = JsonView
Values = list[Any]
"""What a configuration says of the layers, one by one."""
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

MEMBERS = (
    "full_attn_idxs", "cross_attention_layers", "moe_layer_indices", "attn_layer_indices",
    "layers_to_transform",
    "fullatt_block_indexes", "global_attn_indexes", "window_block_indices",
)  # fmt: skip
"""Sets of layer numbers: being in it is all that it says of a layer."""
BY_LAYER = re.compile(
    r"(?!mtp_)(?:layer_types|\w+_layer_types?|layers?_block_types?|layers_types?|indexer_types|attention_layers"
    r"|attn_layers|no_rope_layers|attention_window|block_configs?|\w*per_layer\w*|\w*(?:by_layer|layer_?wise)\w*"
    r"|layer_\w+|intermediate_sizes?|num_attention_heads|num_query_heads|num_key_value_heads|num_kv_heads|head_dims?"
    r"|sliding_windows?|window_sizes?|rope_thetas?|ffn_multipliers|activation_sparsity_pattern|moe_layer_freq"
    r"|use_rope|compress_ratios|num_experts|moe_intermediate_size)"
)
"""Lists of these names, with an entry for each layer, are of the layers."""
KEPT = re.compile(
    r".*(token|word|label|lang|dtype|factor|mean|std|pinpoint|resolution|aspect|kernel|stride|dilation|limit|tag|stage"
    r"|module|section|keys_to|architectures|image|patch|conv|hidden_sizes|depths|range|dataset|class|name).*|\w*_ids?|mtp_\w+"
)
"""Lists of these names are of something else, whatever their length."""
POSITIONAL = re.compile(
    r"(?=.*(?:layer|attn|attention|moe|expert|window|dense|sparse|block|hybrid))"
    r"(?:.*_)?(?:interval|period|offset|freq|frequency|every|step|pattern|first|last|skip|start|end)(?:_.*)?"
    r"|max_window_layers|num_kv_shared_layers|rescale_every|scale_attn_by_inverse_layer_idx|use_weighted_layer_sum"
    r"|hidden_size_per_layer_input|pruned_heads"
)
"""Numbers, words and flags of these names make layers differ by their numbers."""
FROM_THE_END = re.compile(r".*(last|shared|end|per_layer_input|weighted_layer_sum).*")
"""Among them, those that count from the last layer, or give tensors outside the layers a size."""
_LAYER_TYPES = {
    "gemma2": 2,
    "gpt_oss": 2,
    "cohere2": 4,
    "gemma3": 6,
    "gemma3_text": 6,
    "olmo3": 4,
    "exaone4": 4,
}
"""Models that attend to everything in every nth layer, when layer_types is not written out."""
_INTERVALS = {"qwen3_next": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4}
_WINDOW_FROM = (
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen2_vl",
    "qwen2_vl_text",
    "qwen2_5_vl",
    "qwen2_5_vl_text",
    "dots1",
)
_NO_ROPE = ("llama4", "llama4_text", "smollm3")
BY_POSITION = (
    "afmoe", "beam", "cohere2_moe", "cwm", "flint", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text",
    "granite_swa",
    "jamba", "lfm3", "mimo_v2_flash", "minimax", "muse_spark", "neomme", "olmo_hybrid", "qwen2_moe", "zamba",
    "zamba2",
)  # fmt: skip
"""Models whose layers differ by their numbers in ways that soupkit does not write out."""


@dataclass(frozen=True)
class Rule:
    """One thing that a section of a configuration says of every layer.

    read(section, num_layers): a value per layer, None when it says nothing. write(section, values): keys to
    change. uses: other keys that say it where `key` does not.
    """

    key: str
    read: Callable[[Section, int], Values | None]
    write: Callable[[Section, Values], Json]
    uses: tuple[str, ...] = ()


def list_rule(key: str) -> Rule:
    """A list, or a word of one letter per layer."""

    def read(section: Section, num: int) -> Values | None:
        value = section.get(key)
        return list(value) if isinstance(value, list | str) and len(value) == num else None

    def write(section: Section, values: Values) -> Json:
        return {key: "".join(values) if isinstance(section.get(key), str) else values}

    return Rule(key, read, write)


def member_rule(key: str) -> Rule:
    """A set of layer numbers, as a list or as a text such as "4,5,6"."""

    def read(section: Section, num: int) -> Values | None:
        value = section.get(key)
        numbers = value.split(",") if isinstance(value, str) else value
        return (
            None if numbers is None else [number in {int(each) for each in numbers} for number in range(num)]
        )

    def write(section: Section, values: Values) -> Json:
        numbers = [number for number, inside in enumerate(values) if inside]
        return {key: ",".join(map(str, numbers)) if isinstance(section.get(key), str) else numbers}

    return Rule(key, read, write)


def _read_layer_types(section: Section, num: int) -> Values | None:
    kind = section.get("model_type")
    if isinstance(section.get("layer_types"), list):
        return list(section["layer_types"]) if len(section["layer_types"]) == num else None
    if section.get("full_attn_idxs") is not None:
        return [FULL if number in section["full_attn_idxs"] else "conv" for number in range(num)]
    if kind in _WINDOW_FROM and section.get("use_sliding_window") and section.get("sliding_window"):
        return [
            SLIDING if number >= int(section.get("max_window_layers", 28)) else FULL for number in range(num)
        ]
    if kind in ("modernbert", "modernbert-decoder"):
        every = int(section.get("global_attn_every_n_layers", 3))
        return [SLIDING if number % every else FULL for number in range(num)]
    if kind in _INTERVALS:
        every = int(section.get("full_attention_interval", _INTERVALS[kind]))
        return [LINEAR if (number + 1) % every else FULL for number in range(num)]
    pattern = section.get("sliding_window_pattern")
    if kind in _LAYER_TYPES and isinstance(pattern, str):
        return [SLIDING if pattern[number % len(pattern)] == "L" else FULL for number in range(num)]
    if kind in _LAYER_TYPES:
        every = int(pattern or section.get("_sliding_window_pattern") or _LAYER_TYPES[kind])
        return [SLIDING if (number + 1) % every else FULL for number in range(num)]
    return None


def _read_no_rope(section: Section, num: int) -> Values | None:
    written = section.get("no_rope_layers")
    if written:
        return list(written) if len(written) == num else None
    if section.get("model_type") not in _NO_ROPE:
        return None
    every = int(section.get("no_rope_layer_interval") or 4)
    return [int((number + 1) % every != 0) for number in range(num)]


def _read_moe_layers(section: Section, num: int) -> Values | None:
    if section.get("moe_layers") is not None:
        return [number in section["moe_layers"] for number in range(num)]
    step = section.get("interleave_moe_layer_step")
    return [(number + 1) % int(step) == 0 for number in range(num)] if step else None


def _read_sparse(section: Section, num: int) -> Values | None:
    if "mlp_only_layers" not in section and not str(section.get("model_type")).startswith("qwen"):
        return None  # Switch and NLLB mean something else by decoder_sparse_step
    if "mlp_only_layers" not in section and "decoder_sparse_step" not in section:
        return None
    step, dense = int(section.get("decoder_sparse_step") or 1), section.get("mlp_only_layers") or []
    return [number in dense or (number + 1) % step != 0 for number in range(num)]


def _read_dense_prefix(section: Section, num: int) -> Values | None:
    first, every = section.get("first_k_dense_replace"), section.get("moe_layer_freq", 1)
    if first is None or not isinstance(every, int):
        return None
    return [number < int(first) or number % max(1, every) != 0 for number in range(num)]


def _read_attention_types(section: Section, num: int) -> Values | None:
    """GPT-Neo: [[kinds in turn, how often], …]."""
    found: Values = []
    for kinds, times in section.get("attention_types") or []:
        found += list(kinds) * int(times)
    return found if found and len(found) == num else None


def _read_block_types(section: Section, num: int) -> Values | None:
    """RecurrentGemma: kinds that come in turn."""
    kinds = section.get("block_types") or section.get("_block_types")
    return (
        [kinds[number % len(kinds)] for number in range(num)] if isinstance(kinds, list) and kinds else None
    )


def _numbers(values: Values) -> list[int]:
    return [number for number, inside in enumerate(values) if inside]


DERIVED = (
    Rule(
        "no_rope_layers",
        _read_no_rope,
        lambda _, values: {"no_rope_layers": values},
        ("no_rope_layer_interval",),
    ),
    Rule(
        "layer_types",
        _read_layer_types,
        lambda _, values: {"layer_types": values},
        (
            "sliding_window_pattern",
            "_sliding_window_pattern",
            "max_window_layers",
            "global_attn_every_n_layers",
            "full_attention_interval",
        ),
    ),
    Rule(
        "moe_layers",
        _read_moe_layers,
        lambda _, values: {"moe_layers": _numbers(values)},
        ("interleave_moe_layer_step",),
    ),
    Rule(
        "mlp_only_layers",
        _read_sparse,
        lambda _, values: {"decoder_sparse_step": 1, "mlp_only_layers": _numbers(values)},
        ("decoder_sparse_step",),
    ),
    Rule(
        "first_k_dense_replace",
        _read_dense_prefix,
        lambda _, values: {"first_k_dense_replace": values.index(False) if False in values else len(values)},
        ("moe_layer_freq",),
    ),
    Rule("attention_types", _read_attention_types, lambda _, values: {"attention_types": [[values, 1]]}),
    Rule(
        "block_types",
        _read_block_types,
        lambda section, values: {"block_types" if section.get("block_types") else "_block_types": values},
        ("_block_types",),
    ),
)
"""Rules that a list may take the place of, each after what it is derived from."""
