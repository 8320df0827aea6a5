"""What adapter_config.json says of an adapter, and which of it soupkit can merge exactly."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TypeGuard

from soupkit.errors import CheckpointError, brief
from soupkit.jsons import Json, JsonView

REWRITE = "write it as PEFT does (save_pretrained), or merge the adapter into its base there"
MERGE = "merge it into its base model first (peft: merge_and_unload) and save that"
PLAIN = ("true", "false", "gaussian", "eva", "orthogonal", "mica", "none")
"""Beginnings whose first change of the weights is zero, so that the base is what it was."""
RESIDUAL = re.compile(r"pissa(_niter_\d+)?|olora|corda|loftq|lora_ga")
"""Beginnings that take their first product out of the base: the adapter is the change of another base."""
PROMPTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
)
REASONS = {
    "use_dora": "scales the columns of every changed weight (DoRA)",
    "use_qalora": "groups the inputs of quantized layers (QA-LoRA)",
    "layer_replication": "is of a model with copied layers",
    "target_parameters": "changes parameters that are no layer's weight, such as fused experts",
    "trainable_token_indices": "replaces single rows of an embedding",
}
LONGEST_PATTERN, MOST_GROUPS, MOST_REPEATS = 300, 8, 3
_REPEAT, _REPEATED_GROUP = re.compile(r"[*+?{]"), re.compile(r"\)[*+?{]")
UNDERSTOOD = (
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping",
    "peft_version",
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "bias",
    "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern",
    "lora_bias", "megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config",
    "runtime_config", "ensure_weight_tying",
)  # fmt: skip
"""Keys that say nothing of the change of the weights, or that soupkit follows."""


def read_adapter_config(path: Path) -> Json:
    """The configuration of a LoRA. Raises CheckpointError, with the reason, for what cannot be merged
    exactly."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind in PROMPTS:
        raise CheckpointError(
            f"{path}: is of type {kind}, soupkit merges LoRA",
            hint="it changes inputs, not weights: there is nothing that could be merged",
        )
    if isinstance(config, dict) and config.get("alora_invocation_tokens"):
        raise CheckpointError(
            f"{path}: alora_invocation_tokens: it changes weights only after certain tokens (activated LoRA)",
            hint="no weights do that: it cannot be merged",
        )
    if kind != "LORA":
        raise CheckpointError(f"{path}: is an adapter of type {kind}, soupkit merges LoRA", hint=MERGE)
    _check_beginning(path, config)
    for key, value in config.items():
        if value and key not in UNDERSTOOD:
            reason = REASONS.get(key, "may change what its factors mean")
            raise CheckpointError(f"{path}: {key} {reason}; soupkit merges LoRA without it", hint=MERGE)
    _check_scale(path, config)
    return dict(config)


def _check_scale(path: Path, config: JsonView) -> None:
    """The factors are scaled by alpha / rank, so these must be numbers, and patterns of them patterns."""
    for key, pattern, holds, expected in (
        ("r", "rank_pattern", _is_rank, "a whole number from 1 on"),
        ("lora_alpha", "alpha_pattern", _is_finite, "a number"),
    ):
        patterns = config.get(pattern) or {}
        if not isinstance(patterns, dict) or not all(map(_is_pattern, patterns)):
            raise CheckpointError(
                f"{path}: {pattern} is {brief(patterns)}, expected {{pattern: number}}, a pattern of at most "
                f"{MOST_GROUPS} groups and {MOST_REPEATS} repeats, none of a group",
                hint=REWRITE,
            )
        given = {key: config[key]} if key in config else {}
        for place, value in [
            *given.items(),
            *((f"{pattern} {brief(name)}", each) for name, each in patterns.items()),
        ]:
            if not holds(value):
                raise CheckpointError(f"{path}: {place} is {brief(value)}, expected {expected}", hint=REWRITE)


def _is_finite(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1000
    )  # not inf, not NaN


def _is_rank(value: object) -> bool:
    return _is_finite(value) and value >= 1 and value == int(value)


def _is_pattern(text: str) -> bool:
    """Whether it is a pattern that is soon compared with a name: repeats of repeats would take for ever."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    few = text.count("(") <= MOST_GROUPS and len(_REPEAT.findall(text)) <= MOST_REPEATS
    return few and len(text) <= LONGEST_PATTERN and not _REPEATED_GROUP.search(text)


def _check_beginning(path: Path, config: JsonView) -> None:
    beginning = str(config.get("init_lora_weights")).lower()
    if RESIDUAL.fullmatch(beginning):
        raise CheckpointError(
            f"{path}: began as {beginning} (init_lora_weights), which takes a part out of the base's "
            "weights: its factors are no change of the base as it is stored",
            hint="convert it to a plain LoRA (peft: save_pretrained with "
            "path_initial_model_for_weight_conversion), or " + MERGE,
        )
    if beginning not in PLAIN:
        raise CheckpointError(
            f"{path}: init_lora_weights is {beginning!r}, and soupkit does not know whether that "
            f"changes the base",
            hint=MERGE,
        )


def base_of(config: JsonView) -> str:
    """The reference of the base that an adapter names; empty when it names none."""
    name = str(config.get("base_model_name_or_path") or "")
    revision = config.get("revision")
    local = not name or os.path.exists(os.path.expanduser(name))  # noqa: PTH110, PTH111  (False for what cannot be a path)
    return name if local or revision in (None, "", "main") or "@" in name else f"{name}@{revision}"
