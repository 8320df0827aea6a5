"""Stacks of image towers are loaded by timm and open_clip, and compute what those built by hand do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs.restacking import restacked

import soupkit.task.torchvision_ops  # noqa: F401  (before timm and open_clip)
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.cli.app import run_command_line

timm, open_clip = pytest.importorskip("timm"), pytest.importorskip("open_clip")
ORDER = [0, 1, 2, 1, 2, 3]
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def saved(folder: Path, model: torch.nn.Module, config: dict[str, Any], name: str) -> Path:
    folder.mkdir()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    prefix = "open_clip_" if name.startswith("open_clip") else ""
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    write_tensors(folder, tensors, file_name=f"{prefix}model.safetensors")
    (folder / name).write_text(json.dumps(config))
    return folder


def stack(source: Path, *more: str) -> Path:
    out = source.with_name("out")
    words = ["merge", "passthrough", str(source), str(source), "--layers", "0:3", "--layers", "1:4", *more]
    assert run_command_line([*words, "--out", str(out), "--quiet"]) == 0
    return out


@pytest.mark.parametrize("said", [True, False])
def test_timm(said: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"embed_dim": 12, "num_heads": 2, "img_size": 32, "num_classes": 3}
    depth = {"depth": 4} if said else {}
    model = timm.create_model("vit_tiny_patch16_224", **args, **depth).eval()
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "pretrained_cfg": {},
        "model_args": args | depth,
    }
    out = stack(saved(tmp_path / "source", model, config, "config.json"))
    by_hand = timm.create_model("vit_tiny_patch16_224", **args, depth=len(ORDER)).eval()
    by_hand.load_state_dict(restacked(model.state_dict(), "blocks", ORDER))
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IMAGES), by_hand(IMAGES))


@pytest.mark.parametrize("tower", ["visual.transformer.resblocks", "transformer.resblocks"])
def test_open_clip(tower: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers: dict[str, dict[str, int]] = {
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 8, "layers": 4, "head_width": 4},
        "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 2, "layers": 4},
    }
    config = {"model_cfg": {"embed_dim": 8, **towers}, "preprocess_cfg": {}}
    source = open_clip.CLIP(embed_dim=8, **towers).eval()
    out = stack(saved(tmp_path / "source", source, config, "open_clip_config.json"), "--stack", tower)
    written = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]
    deeper = {key: dict(value) for key, value in towers.items()}
    deeper["vision_cfg" if tower.startswith("visual") else "text_cfg"]["layers"] = len(ORDER)
    assert written == {"embed_dim": 8, **deeper}
    loaded = open_clip.CLIP(**written)
    found = Checkpoint(out)
    loaded.load_state_dict({name: torch.from_numpy(found[name]) for name in found})
    by_hand = open_clip.CLIP(embed_dim=8, **deeper)
    by_hand.load_state_dict(restacked(source.state_dict(), tower, ORDER))
    tokens = torch.arange(16).reshape(2, 8)
    with torch.no_grad():
        for one, other in zip(loaded.eval()(IMAGES, tokens), by_hand.eval()(IMAGES, tokens)):
            torch.testing.assert_close(one, other)
