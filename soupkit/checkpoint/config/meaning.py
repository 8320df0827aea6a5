"""Same shapes, other meaning: keys of configurations that change what the same weights compute.

Heads divide the same matrix in other places, quick_gelu is not gelu, and class 0 of one may be class 3 of the
other: a mean of such models means nothing. Another epsilon or rope_theta is milder: worth a warning. Keys in
neither table (names, versions, caches, dropout) say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from soupkit.checkpoint.config.classifier import SECTION
from soupkit.checkpoint.config.layer_rules import BY_LAYER, MEMBERS
from soupkit.errors import CompatibilityError
from soupkit.jsons import JsonView
from soupkit.recipe.parse import whole_number

Mismatch = Literal["error", "warn"]
Config = JsonView
HEADS = re.compile(
    r"(?:encoder_|decoder_|num_|n_|vision_|text_)*(?:attention_heads|heads?|key_value_heads|kv_heads|head_kv)"
    r"|head_dim|head_width|d_kv|qk_nope_head_dim|qk_rope_head_dim|v_head_dim|multi_query_group_num|num_key_value_groups"
)
ACTIVATION = re.compile(
    r"(?:mlp_|ffn_|dense_)?(?:hidden_act|hidden_activation|activation|activation_function|act_layer|act_fn|act)"
    r"|quick_gelu|feed_forward_proj"
)
WIRING = re.compile(
    r"do_layer_norm_before|apply_residual_connection_post_layernorm|parallel_attn|use_parallel_residual|alibi|is_decoder"
    r"|position_embedding_type|partial_rotary_factor|rotary_pct|rotary_dim|rope_interleaved?|pool_type|pooling_type"
    r"|global_pool|no_causal_mask|norm_first|pre_norm|scale_attn_by_inverse_layer_idx|hidden_size|d_model|n_embd"
    r"|mlp_only_layers|attention_layers|hybrid_override_pattern|sliding_window_pattern"
)
MILD = re.compile(
    r"\w*(?:norm_eps|norm_epsilon|_eps)|eps|rope_theta|rope_scaling\S*|max_position_embeddings|n_positions|(?:use_)?sliding_window"
    r"|\w*softcap(?:ping)?|query_pre_attn_scalar|\w*(?:_multiplier|_scaling_factor)|logits?_scal\w*|scale_\w+|attn_scale"
    r"|tie_word_embeddings|num_experts_per_tok|norm_topk_prob|attention_multiplier|(?:pad|bos|eos|decoder_start)_token_id"
    r"|mean|std|image_mean|image_std|rescale_factor|do_normalize|do_rescale|interpolation|crop_pct|attention_chunk_size"
)
FEATURES = (f"{SECTION}.normalize", f"{SECTION}.logit_scale")
"""What a learned head of CLIP is given."""
_SKIPPED = (
    "quantization_config",
    "task_specific_params",
    "auto_map",
    "generation_config",
    "id2label",
    "label2id",
)
_DEFAULTS = {"quick_gelu": False, "no_causal_mask": False}
"""What open_clip takes where its configuration says nothing."""
_UNSAID = {"rope_scaling": {"rope_type": "default"}}
"""What transformers takes where nothing is said; it does not write what is so."""
_NEARLY = ("gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_accurate", "gelu_pytorch_tanh", "gelu_tanh")
_GENERIC = re.compile(r"label_\d+", re.IGNORECASE)


def check_meaning(
    configs: Sequence[Config], names: Sequence[str], *, mismatch: Mismatch = "error", by_layer: bool = True
) -> tuple[str, ...]:
    """What to warn of. Raises CompatibilityError for what makes a mean meaningless, unless mismatch is
    "warn".

    by_layer: whether lists with an entry per layer must agree too; for stacks they follow their layers.
    """
    remarks: list[str] = []
    for key, values in _differing(configs):
        severe = _severe(key, values, by_layer)
        if severe is None:
            continue
        message = _message(key, values, names)
        if severe and mismatch == "error":
            raise CompatibilityError(
                message,
                hint="the same weights mean something else there, so a mean has no meaning: leave one out, "
                "or make the config.json agree if it is wrong; --mismatch warn goes on all the same",
            )
        remarks.append(message + ("" if severe else "; what is written says what the first does"))
    return (*remarks, *_check_classes(configs, names, mismatch))


def _differing(configs: Sequence[Config]) -> Iterator[tuple[str, list[object]]]:
    """Every key that is said twice with other values, and its values; None where it is not said."""
    if all(config == configs[0] for config in configs):
        return
    flat = [dict(_flat(config)) for config in configs]
    clip = all("model_cfg" in config for config in configs)
    for key in dict.fromkeys(key for each in flat for key in each):
        default = (_DEFAULTS if clip else _UNSAID).get(key.rpartition(".")[2])
        values = [each.get(key, default) for each in flat]
        said = [value for value in values if value is not None]
        if any(_plain(value) != _plain(said[0]) for value in said):
            yield key, values


def _flat(config: Config, path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and their values; positions as transformers 5 writes them look like those of version 4."""
    parameters, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    for key, value in config.items():
        if key in ("rope_parameters", "rope_scaling"):
            continue
        if isinstance(value, dict):
            if key not in _SKIPPED:
                yield from _flat(value, f"{path}{key}.")
        else:
            yield path + key, value
    if isinstance(parameters, dict) and all(isinstance(value, dict) for value in parameters.values()):
        yield f"{path}rope_scaling", parameters
    elif (given := parameters or scaling) and not isinstance(given, dict):
        yield f"{path}rope_scaling", given
    elif isinstance(parameters, dict) or "rope_scaling" in config:
        rope = dict(given or {})
        if "rope_theta" in rope:
            yield f"{path}rope_theta", rope.pop("rope_theta")
        rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
        yield f"{path}rope_scaling", {key: value for key, value in rope.items() if key != "type"}


def _plain(value: object) -> object:
    if isinstance(value, str):
        return {"swish": "silu", "relu6": "relu6"}.get(value.lower(), value.lower())
    return value


def _severe(path: str, values: Sequence[object], by_layer: bool) -> bool | None:
    """Whether a difference leaves no meaning (True), is worth a warning (False), or neither (None)."""
    key = path.rpartition(".")[2]
    if path in FEATURES:
        return True
    if ACTIVATION.fullmatch(key):
        return not all(str(_plain(value)) in _NEARLY for value in values if value is not None)
    if HEADS.fullmatch(key) or (WIRING.fullmatch(key) and (by_layer or not BY_LAYER.fullmatch(key))):
        return True
    if key in MEMBERS or (BY_LAYER.fullmatch(key) and any(isinstance(value, list) for value in values)):
        return True if by_layer else None
    return False if MILD.fullmatch(key) else None


def _message(key: str, values: Sequence[object], names: Sequence[str]) -> str:
    """`key` and who says what, the first and the first that differs from it."""
    said = [(value, name) for value, name in zip(values, names, strict=True) if value is not None]
    (first, name), others = said[0], [each for each in said if _plain(each[0]) != _plain(said[0][0])]
    more = f" (and {len(others) - 1} more differ)" if len(others) > 1 else ""
    return f"{key} is {_short(first)} in {name}, but {_short(others[0][0])} in {others[0][1]}{more}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _classes(config: Config) -> dict[int, str]:
    """{number: name} of a classifier's outputs; none where only generic names are given."""
    inner = [config.get(key) for key in ("pretrained_cfg", SECTION)]
    own, head = ({} if not isinstance(each, dict) else each for each in inner)
    names = config.get("label_names") or own.get("label_names") or head.get("class_names")
    table = config.get("id2label")
    if isinstance(names, list):
        table = dict(enumerate(names))
    elif not isinstance(table, dict) and isinstance(config.get("label2id"), dict):
        table = {str(number): name for name, number in config["label2id"].items()}
    if not isinstance(table, dict):
        return {}
    numbers = ((whole_number(str(number)), name) for number, name in table.items())
    found = {number: str(name).lower() for number, name in numbers if number is not None}
    return {} if all(_GENERIC.fullmatch(name) for name in found.values()) else found


def _check_classes(configs: Sequence[Config], names: Sequence[str], mismatch: Mismatch) -> list[str]:
    """Classes that all have must have the same number; classes that only some have are worth a warning."""
    known = [
        (classes, name) for config, name in zip(configs, names, strict=True) if (classes := _classes(config))
    ]
    remarks = []
    for classes, name in known[1:]:
        first, first_name = known[0]
        if classes == first:
            continue
        number = {label: place for place, label in first.items()}
        moved = [place for place, label in classes.items() if number.get(label, place) != place]
        place = moved[0] if moved else next(n for n in {**first, **classes} if first.get(n) != classes.get(n))
        message = (
            f"class {place} is {first.get(place)!r} in {first_name}, but {classes.get(place)!r} in {name}"
        )
        if moved and mismatch == "error":
            raise CompatibilityError(
                message,
                hint="their classes are in another order, so their heads cannot be averaged: train with one "
                "order (id2label, label_names), or leave one out; --mismatch warn goes on all the same",
            )
        remarks.append(message)
    return remarks
