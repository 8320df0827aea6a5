"""Small real models, made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from task.small import CLIP_CONFIG

from soupkit.task.images.models import ModelSpec, build


@pytest.fixture(scope="session")
def clip_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny open_clip model with random weights."""
    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    model = build(ModelSpec("open_clip", "tiny", {}, CLIP_CONFIG))
    (directory / "open_clip_config.json").write_text(json.dumps(CLIP_CONFIG))
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    return directory
