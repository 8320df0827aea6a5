"""Small real models and data for the tests of tasks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from soupkit.recipe.evaluate import Evaluate
from soupkit.task.images.metrics import METRICS
from soupkit.task.images.models import build, parse_model, write_config
from soupkit.task.score import Predictions, Score

CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}

FEW_WORDS = CLIP_CONFIG | {
    "model_cfg": CLIP_CONFIG["model_cfg"]
    | {"text_cfg": CLIP_CONFIG["model_cfg"]["text_cfg"] | {"vocab_size": 500}}
}
"""The same with a small vocabulary, where no text is read: words were nine tenths of its weights."""


def score_predictions(predictions: Predictions, metric: str) -> Score:
    return METRICS[metric].of(predictions.outputs, predictions.targets)


def described(directory: Path, name: str = "config.json") -> Any:
    """What `describe` needs of a checkpoint: its configuration and where it lies."""
    config = json.loads((directory / name).read_text()) if (directory / name).is_file() else {}
    return SimpleNamespace(
        config=config, directory=directory, reference=str(directory), files=(), companions=()
    )


def saved(directory: Path, model: str, *, seed: int = 0) -> torch.nn.Module:
    """Random weights of `model` as a checkpoint directory."""
    directory.mkdir(parents=True, exist_ok=True)
    spec = parse_model(model)
    torch.manual_seed(seed)
    built = build(spec)
    write_config(spec, built, directory)
    save_file(
        {name: tensor.contiguous() for name, tensor in built.state_dict().items()},
        directory / "model.safetensors",
    )
    return built


def recipe(**values: Any) -> Evaluate:
    """A recipe with the fields of a task, on few digits."""
    few = {"data": "digits", "num_train": 50, "num_held_out": 150, "num_test": 100, "device": "cpu"}
    return Evaluate(refs=("unused",), **(few | values))
