"""big_vision's arrays become timm's weights, number for number; a loader that resizes is found out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from soupkit.cli.app import run_command_line
from soupkit.task.images.models import build
from soupkit.task.spec import parse_model

MODEL = "timm:vit_tiny_patch16_224,img_size=32,embed_dim=12,depth=2,num_heads=3,num_classes=5"


def big_vision(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The inverse of what timm does: kernels are inputs × outputs, heads apart."""
    found: dict[str, torch.Tensor] = {
        "embedding/kernel": weights["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": weights["patch_embed.proj.bias"],
        "cls": weights["cls_token"],
        "pos_embedding": weights["pos_embed"],
        "head/kernel": weights["head.weight"].T,
        "head/bias": weights["head.bias"],
        "Transformer/encoder_norm/scale": weights["norm.weight"],
        "Transformer/encoder_norm/bias": weights["norm.bias"],
    }
    for block in range(2):
        old, new = f"blocks.{block}.", f"Transformer/encoderblock_{block}/"
        attention = f"{new}MultiHeadDotProductAttention_0/"
        qkv = weights[f"{old}attn.qkv.weight"].chunk(3), weights[f"{old}attn.qkv.bias"].chunk(3)
        for name, weight, bias in zip(("query", "key", "value"), *qkv):
            found[f"{attention}{name}/kernel"] = weight.T.reshape(12, 3, 4)
            found[f"{attention}{name}/bias"] = bias.reshape(3, 4)
        found[f"{attention}out/kernel"] = weights[f"{old}attn.proj.weight"].T.reshape(3, 4, 12)
        found[f"{attention}out/bias"] = weights[f"{old}attn.proj.bias"]
        for number in range(2):
            found[f"{new}LayerNorm_{number}/scale"] = weights[f"{old}norm{number + 1}.weight"]
            found[f"{new}LayerNorm_{number}/bias"] = weights[f"{old}norm{number + 1}.bias"]
            dense = f"{new}MlpBlock_0/Dense_{number}/"
            found[f"{dense}kernel"] = weights[f"{old}mlp.fc{number + 1}.weight"].T
            found[f"{dense}bias"] = weights[f"{old}mlp.fc{number + 1}.bias"]
    return {f"params/{name}": tensor.numpy() for name, tensor in found.items()}


def test_numbers_move_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = {name: torch.randn(each.shape) for name, each in build(parse_model(MODEL)).state_dict().items()}
    path = tmp_path / "m.npz"
    np.savez(path, **big_vision(weights))
    out = tmp_path / "out"
    assert run_command_line(["convert", str(path), "--model", MODEL, "--out", str(out), "--quiet"]) == 0
    written = load_file(out / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in weights.items())
    assert run_command_line(["verify", str(out), "--inputs", "--quiet"]) == 0
    larger = MODEL.replace("img_size=32", "img_size=64")
    capsys.readouterr()
    assert run_command_line(["convert", str(path), "--model", larger, "--out", str(tmp_path / "no")]) == 1
    assert "they are not the same ones" in capsys.readouterr().err
