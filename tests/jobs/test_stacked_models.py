"""Stacks of layers are loaded by transformers whole, and compute what a model built by hand of the same
layers does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs.restacking import restacked

import soupkit.task.torchvision_ops  # noqa: F401  (before transformers)
from soupkit.cli.app import run_command_line

transformers = pytest.importorskip("transformers")

NUM = 4
SMALL: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": NUM,
    "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 32, "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"
ALTERNATE = [SLIDING, FULL, SLIDING, FULL]
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
ONES, TWOS = (0, 3), (1, 4)
ORDER = [*range(*ONES), *range(*TWOS)]


def taken(values: list[Any]) -> list[Any]:
    return [values[layer] for layer in ORDER]


TEXTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "gemma2": ("Gemma2", {"sliding_window": 3, "layer_types": ALTERNATE}, {"layer_types": taken(ALTERNATE)}),
    "gemma3": (
        "Gemma3Text",
        {"sliding_window": 3, "layer_types": [SLIDING, SLIDING, FULL, SLIDING]},
        {"layer_types": taken([SLIDING, SLIDING, FULL, SLIDING])},
    ),
    "gpt-oss": (
        "GptOss",
        {"sliding_window": 3, "num_local_experts": 4, "layer_types": ALTERNATE},
        {"layer_types": taken(ALTERNATE)},
    ),
    "sliding qwen2": (
        "Qwen2",
        {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 2},
        {"layer_types": taken([FULL, FULL, SLIDING, SLIDING])},
    ),
    "lfm2": (
        "Lfm2",
        {"layer_types": ["conv", FULL, "conv", "conv"]},
        {"layer_types": taken(["conv", FULL, "conv", "conv"])},
    ),
    "qwen3-moe": ("Qwen3Moe", MOE | {"mlp_only_layers": [0, 3]}, {"mlp_only_layers": [0, 5]}),
    "qwen3-moe by step": (
        "Qwen3Moe",
        MOE | {"decoder_sparse_step": 2},
        {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2, 4]},
    ),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}, {"no_rope_layers": taken([1, 0, 1, 0])}),
    "llama4": (
        "Llama4Text",
        {
            "num_local_experts": 2, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 16,
            "no_rope_layer_interval": 2, "attention_chunk_size": 4,
        },
        {
            "moe_layers": [1, 3, 5], "no_rope_layers": taken([1, 0, 1, 0]),
            "layer_types": taken(["chunked_attention", FULL, "chunked_attention", FULL]),
        },
    ),
    "deepseek": (
        "DeepseekV3",
        {
            "first_k_dense_replace": 4, "n_routed_experts": 2, "kv_lora_rank": 4, "q_lora_rank": 4,
            "v_head_dim": 4,
            "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "num_key_value_heads": 2,
        },
        {"first_k_dense_replace": 6},
    ),
}  # fmt: skip


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    def save(model: Any) -> Path:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    torch.manual_seed(0)
    return save


def stack(source: Path, *more: Any) -> Path:
    out = source.with_name("out")
    layers = [word for start, stop in (ONES, TWOS) for word in ("--layers", f"{start}:{stop}")]
    words = ["merge", "passthrough", source, source, *layers, *more, "--out", out, "--quiet"]
    assert run_command_line([str(word) for word in words]) == 0
    return out


def load(kind: Any, out: Path) -> Any:
    model, said = kind.from_pretrained(out, output_loading_info=True)
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("name", TEXTS)
def test_language_models(name: str, build: Callable[..., Path]) -> None:
    kind, options, changed = TEXTS[name]
    config = getattr(transformers, f"{kind}Config")
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")
    source = model(config(**(SMALL | options)))
    path = build(source)
    loaded = load(transformers.AutoModelForCausalLM, stack(path))
    by_hand = model(config(**(SMALL | options | {"num_hidden_layers": len(ORDER)} | changed))).eval()
    by_hand.load_state_dict(restacked(source.state_dict(), "model.layers", ORDER))
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, by_hand(tokens).logits)


TEXT = {key: value for key, value in SMALL.items() if key != "head_dim"}
VISION = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": NUM, "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
SIDES = {
    "d_model": 8, "encoder_layers": NUM, "decoder_layers": NUM, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 20,
    "max_position_embeddings": 32,
}  # fmt: skip
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "vocab_size": 20, "num_layers": NUM}
TOKENS = torch.arange(3, 15)[None]
PAIR = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}


def qwen2_vl(num: int) -> Any:
    vision = {"depth": NUM, "embed_dim": 8, "num_heads": 2, "hidden_size": 8, "mlp_ratio": 1}
    rope = {"rope_theta": 1e4, "rope_type": "default", "mrope_section": [1, 1, 0]}
    text = TEXT | {"num_hidden_layers": num, "rope_parameters": rope}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return transformers.Qwen2VLForConditionalGeneration(config)


def clip(num: int) -> Any:
    vision = VISION | {"num_hidden_layers": num}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8)
    )


PIXELS = {"pixel_values": torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)}
TOWERS: dict[str, tuple[Callable[[int], Any], str, str | None, dict[str, Any]]] = {
    "qwen2-vl text": (qwen2_vl, "model.language_model.layers", "model.layers", {"input_ids": TOKENS}),
    "clip images": (clip, "vision_model.encoder.layers", None, {"input_ids": TOKENS} | PIXELS),
    "t5 decoder": (
        lambda num: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5,
        num_decoder_layers=num)),
        "decoder.block", None, PAIR,
    ),
    "bart encoder": (
        lambda num: transformers.BartForConditionalGeneration(
            transformers.BartConfig(**(SIDES | {"encoder_layers": num}))
        ),
        "model.encoder.layers", None, PAIR,
    ),
    "bart decoder": (
        lambda num: transformers.BartForConditionalGeneration(
            transformers.BartConfig(**(SIDES | {"decoder_layers": num}))
        ),
        "model.decoder.layers", None, PAIR,
    ),
    "gpt2": (
        lambda num: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=num, n_embd=8, n_head=2, vocab_size=20, n_positions=32)
        ),
        "transformer.h", None, {"input_ids": TOKENS},
    ),
    "vit": (
        lambda num: transformers.ViTForImageClassification(
            transformers.ViTConfig(**(VISION | {"num_hidden_layers": num}))
        ),
        "vit.layers", "vit.encoder.layer", PIXELS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_towers(name: str, build: Callable[..., Path]) -> None:
    make, inside, stored, inputs = TOWERS[name]
    source = make(NUM)
    path = build(source)
    out = stack(path, "--stack", stored or inside)
    loaded = load(type(source), out)
    by_hand = make(len(ORDER)).eval()
    by_hand.load_state_dict(restacked(source.state_dict(), inside, ORDER))
    with torch.no_grad():
        one, other = loaded(**inputs), by_hand(**inputs)
    for key, value in other.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(one[key], value)
