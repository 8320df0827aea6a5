"""Pipelines of diffusers: every component is merged, and configurations, scheduler and tokenizers travel."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.source import slots_of
from soupkit.checkpoint.tensors import TensorFiles, plan_files
from soupkit.cli.app import run_command_line

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": [None, None],
}


def pipeline(folder: Path, value: float) -> Path:
    """As save_pretrained lays it out, with the halves that a variant adds, and the unet in shards."""
    tensors = {
        "conv_in.weight": np.full((2, 3), value, np.float32),
        "mid.bias": np.full(5, value, np.float32),
    }
    for component, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / component).mkdir(parents=True)
        plan = plan_files(
            slots_of(tensors),
            file_name=f"{name}.safetensors",
            max_shard_bytes=24 if component == "unet" else 10**6,
        )
        with TensorFiles(folder / component, plan) as files:
            for each, values in tensors.items():
                files.write(each, 0, values.reshape(-1))
    (folder / "text_encoder" / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    for name in ("scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


@pytest.mark.parametrize("shards", [False, True])
def test_components_are_merged_and_the_rest_travels(tmp_path: Path, shards: bool) -> None:
    first, second = pipeline(tmp_path / "a", 1), pipeline(tmp_path / "b", 4)
    out = tmp_path / "soup"
    words = ["merge", "uniform", str(first), str(second), "--dtype", "bfloat16", "--out", str(out), "--quiet"]
    assert run_command_line([*words, *(["--max-shard-size", "15B"] if shards else [])]) == 0
    soup = Checkpoint(out)
    assert soup.slots.keys() == {
        f"{component}/{name}"
        for component in ("unet", "text_encoder")
        for name in ("conv_in.weight", "mid.bias")
    }
    assert all((values == 2.5).all() for values in soup.values())
    kept = {
        path.relative_to(first).as_posix() for path in first.rglob("*") if path.suffix in (".json", ".txt")
    }
    there = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert {name for name in kept if not name.endswith("index.json")} < there
    assert "model_index.json" in there
    if not shards:
        own = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
        assert own.keys() == {"conv_in.weight", "mid.bias"}
    assert json.loads((out / "text_encoder" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert run_command_line(["verify", str(out), "--inputs", "--strict", "--quiet"]) == 0
    assert run_command_line(["diff", str(out), str(first), "--quiet"]) == 0
