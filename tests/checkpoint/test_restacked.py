"""The configuration of a stack: which depth changes, what follows the layers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from soupkit.checkpoint.config.restacked import Origin, stacked_config
from soupkit.errors import CompatibilityError

LLAMA = {"model_type": "llama", "num_hidden_layers": 4}
SPECIAL = {
    "eos_token_id": [2, 5, 7, 9], "architectures": ["A", "B", "C", "D"], "mrope_section": [1, 1, 1, 1],
    "rope_scaling": {"short_factor": [1, 2, 3, 4]}, "begin_suppress_tokens": [1, 2, 3, 4],
}  # fmt: skip


def stacked(
    config: Any, *ranges: tuple[int, int], stack: str = "model.layers", num: int = 4
) -> dict[str, Any]:
    configs = config if isinstance(config, list) else [config] * len(ranges)
    origins = [Origin(each, num, *span) for each, span in zip(configs, ranges, strict=True)]
    return stacked_config(origins, stack)[0]


CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lists of something else": (SPECIAL, SPECIAL),
    "one entry per layer": ({"layer_types": [*"abcd"]}, {"layer_types": [*"abcbcd"]}),
    "numbers per layer": ({"intermediate_size": [1, 2, 3, 4]}, {"intermediate_size": [1, 2, 3, 2, 3, 4]}),
    "windows per layer": (
        {"sliding_window": [None, 4, None, 4]},
        {"sliding_window": [None, 4, None, 4, None, 4]},
    ),
    "nested": ({"attn_config": {"layer_types": [*"abcd"]}}, {"attn_config": {"layer_types": [*"abcbcd"]}}),
    "letters per layer": ({"hybrid_override_pattern": "M-*M"}, {"hybrid_override_pattern": "M-*-*M"}),
    "numbers of layers": ({"attn_layer_indices": [0, 2]}, {"attn_layer_indices": [0, 2, 4]}),
    "numbers in a text": ({"moe_layers_enum": "1,3"}, {"moe_layers_enum": "1,3,5"}),
    "none of them": ({"mlp_only_layers": []}, {"mlp_only_layers": []}),
    "lfm2": ({"full_attn_idxs": [1], "layer_types": None}, {"full_attn_idxs": [1, 3]}),
    "gemma3 of old": (
        {"model_type": "gemma3_text", "sliding_window_pattern": 3},
        {
            "layer_types": [
                f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding", "full", "sliding")
            ]
        },
    ),
    "another tower": (
        {"vision_config": {"model_type": "swin", "num_heads": [1, 2, 3, 4]}},
        {"vision_config": {"model_type": "swin", "num_heads": [1, 2, 3, 4]}},
    ),
    "no window in use": ({"max_window_layers": 2, "use_sliding_window": False}, {"max_window_layers": 2}),
    "gpt-neo": (
        {"attention_types": [[["global", "local"], 2]], "attention_layers": ["global", "local"] * 2},
        {"attention_types": [[["global", "local"] * 3, 1]], "attention_layers": ["global", "local"] * 3},
    ),
    "kinds in turn": ({"block_types": [*"rra"]}, {"block_types": [*"rrarar"]}),
    "dense first": ({"first_k_dense_replace": 0, "moe_layer_freq": 1}, {"first_k_dense_replace": 0}),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_said_of_layers_goes_with_them(name: str) -> None:
    config, expected = CONFIGURATIONS[name]
    found = stacked(LLAMA | config, (0, 3), (1, 4))
    assert found["num_hidden_layers"] == 6
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    "config",
    [
        {"first_k_dense_replace": 2},
        {"sliding_window_pattern": 3, "model_type": "unheard_of"},
        {"attn_layer_period": 2, "attn_layer_offset": 1},
        {"expert_layer_period": 2},
        {"scale_attn_by_inverse_layer_idx": True},
        {"num_kv_shared_layers": 2},
        {"deepstack_visual_indexes": [1, 3]},
        {"gates": [1, 2, 3, 4]},
        {"layer_types": [*"abc"]},
        {"pruned_heads": {"1": [0]}},
        {"max_window_layers": 2, "use_sliding_window": True, "model_type": "unheard_of"},
        {"model_type": "jamba"},
        {"num_hidden_layers": 5},
        {"hybrid_override_pattern": "M-"},
        {"decoder_sparse_step": 2, "model_type": "switch_transformers"},
        {"attention_window": [1, 2, 3, 4], "decoder_layers": 4, "encoder_layers": 4},
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_is_not_understood_is_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(CompatibilityError, match=next(iter(config))) as error:
        stacked(LLAMA | config, (0, 3), (1, 4))
    assert error.value.hint
    if "num_hidden_layers" not in config:
        assert (
            stacked(LLAMA | config, (0, 4)) == LLAMA | config
        )  # all layers in their places: nothing changes


def test_rules_that_count_from_the_first_layer_hold_for_the_first_layers() -> None:
    config = LLAMA | {"attn_layer_period": 2, "first_k_dense_replace": 1, "layer_types": [*"abcd"]}
    expected = config | {"num_hidden_layers": 3, "layer_types": [*"abc"]}
    assert stacked(config, (0, 3)) == expected
    assert stacked(config, (0, 2), (2, 3)) == expected
    with pytest.raises(CompatibilityError, match="kv_shared"):
        stacked(LLAMA | {"num_kv_shared_layers": 2}, (0, 3))


def test_a_list_may_say_the_depth() -> None:
    config = {"model_type": "nemotron_h", "layers_block_type": [*"abcd"], "mtp_layers_block_type": ["a"]}
    assert stacked(config, (0, 3), (1, 4)) == config | {"layers_block_type": [*"abcbcd"]}


def test_the_last_stage_stays_the_last() -> None:
    stages = {"stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"]}
    last = {"out_indices": [4], "out_features": ["stage4"], **stages}
    assert stacked(LLAMA | last, (0, 3), (1, 4)) == LLAMA | {"num_hidden_layers": 6}
    with pytest.raises(CompatibilityError, match="out_indices"):
        stacked(LLAMA | {"out_indices": [2], "out_features": ["stage2"], **stages}, (0, 3), (1, 4))


def test_lists_come_from_the_model_of_each_layer() -> None:
    a, b = (
        {**LLAMA, "layer_types": [*word], "mlp_only_layers": only}
        for word, only in (("abcd", [0]), ("wxyz", [3]))
    )
    found = stacked([a, b], (0, 2), (2, 4))
    assert found["layer_types"] == [*"abyz"]
    assert found["mlp_only_layers"] == [0, 3]
    with pytest.raises(CompatibilityError, match="layer_types"):
        stacked([a, LLAMA], (0, 2), (2, 4))


def test_a_rule_is_written_out_when_it_no_longer_holds() -> None:
    sliding, full = "sliding_attention", "full_attention"
    config = LLAMA | {"model_type": "gemma2"}
    assert "layer_types" not in stacked(config, (0, 3), (1, 4))  # every second one still
    assert stacked(config, (0, 3), (0, 3))["layer_types"] == [sliding, full, sliding, sliding, full, sliding]


CLIP = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}, "layers": [1]}
SIDES = {"is_encoder_decoder": True, "encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4}
TOWERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "clip images": (CLIP, "vision_model.encoder.layers", {"vision_config.num_hidden_layers": 6}),
    "clip texts": (CLIP, "text_model.encoder.layers", {"text_config.num_hidden_layers": 6}),
    "older copies": (
        CLIP | {"vision_config_dict": {"num_hidden_layers": 4}},
        "vision_model.encoder.layers",
        {"vision_config.num_hidden_layers": 6, "vision_config_dict.num_hidden_layers": 6},
    ),
    "flat text, nested images": (
        {"num_hidden_layers": 4, "vision_config": {"depth": 4}}, "model.layers", {"num_hidden_layers": 6}
    ),
    "images of a flat text": (
        {"num_hidden_layers": 4, "vision_config": {"depth": 4}}, "visual.blocks", {"vision_config.depth": 6}
    ),
    "audio tower": (
        {"audio_config": {"encoder_layers": 4}, "text_config": {"num_hidden_layers": 4}},
        "audio_tower.layers",
        {"audio_config.encoder_layers": 6},
    ),
    "bart encoder": (SIDES, "model.encoder.layers", {"encoder_layers": 6, "num_hidden_layers": 6}),
    "bart decoder": (SIDES, "model.decoder.layers", {"decoder_layers": 6}),
    "t5 decoder that is not said": (
        {"model_type": "t5", "num_layers": 4, "num_decoder_layers": None}, "decoder.block",
        {"num_decoder_layers": 6}
    ),
    "t5 encoder": (
        {"model_type": "t5", "num_layers": 4}, "encoder.block", {"num_layers": 6, "num_decoder_layers": 4}
    ),
    "image captions": (
        {"encoder": {"num_hidden_layers": 4}, "decoder": {"n_layer": 4}},
        "decoder.transformer.h",
        {"decoder.n_layer": 6},
    ),
    "image captions, images": (
        {"encoder": {"num_hidden_layers": 4}, "decoder": {"n_layer": 4}},
        "encoder.encoder.layer",
        {"encoder.num_hidden_layers": 6},
    ),
    "a talker": (
        {"thinker_config": {"text_config": {"num_hidden_layers": 4}},
        "talker_config": {"num_hidden_layers": 4}},
        "talker.model.layers",
        {"talker_config.num_hidden_layers": 6},
    ),
    "timm": ({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"a": 1}}, "blocks",
    {"model_args.depth": 6}),
    "timm with a depth": ({"architecture": "x", "model_args": {"depth": 4}}, "blocks",
    {"model_args.depth": 6}),
    "open_clip images": (
        {"model_cfg": {"vision_cfg": {"layers": 4}, "text_cfg": {"layers": 4}}},
        "visual.transformer.resblocks",
        {"model_cfg.vision_cfg.layers": 6},
    ),
    "open_clip texts": (
        {"model_cfg": {"vision_cfg": {"layers": 4}, "text_cfg": {"layers": 4}}},
        "transformer.resblocks",
        {"model_cfg.text_cfg.layers": 6},
    ),
}  # fmt: skip


def flat(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


@pytest.mark.parametrize("name", TOWERS)
def test_the_depth_of_the_tower_that_was_stacked_changes(name: str) -> None:
    config, stack, expected = TOWERS[name]
    found = flat(stacked(config, (0, 3), (1, 4), stack=stack))
    assert found == {key: value for key, value in flat(config).items() if value is not None} | expected


@pytest.mark.parametrize(
    ("config", "stack", "message"),
    [
        ({"model_type": "swin", "depths": [2, 4]}, "swin.layers.1.blocks", "does not say how many layers"),
        ({"architecture": "vit_tiny_patch16_224"}, "blocks", "does not say how many layers"),
        ({"architecture": "swin_tiny"}, "layers.1.blocks", "does not say how many layers"),
        ({"a": {"num_hidden_layers": 4}, "b": {"num_hidden_layers": 4}}, "model.layers", "is not clear"),
        (LLAMA | {"num_hidden_layers": 2}, "model.layers", "num_hidden_layers is 2, but the weights have 4"),
        (
            {"vision_config": {"num_hidden_layers": 4}, "vision_feature_layer": 1},
            "vision_tower.layers",
            "vision_feature_layer",
        ),
    ],
)
def test_towers_that_cannot_be_told_are_refused(config: dict[str, Any], stack: str, message: str) -> None:
    with pytest.raises(CompatibilityError, match=message):
        stacked(config, (0, 3), (1, 4), stack=stack)
