"""Pipelines of diffusers: a folder whose `model_index.json` names components, each in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

from soupkit.checkpoint.config.modules import WEIGHTS

INDEX = "model_index.json"


def component_folders(directory: Path) -> list[str]:
    """The folders of a pipeline's components, those without weights (scheduler, tokenizer) among them; none
    for any other directory."""
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    named = (
        [key for key, value in index.items() if isinstance(value, list)] if isinstance(index, dict) else []
    )
    plain = [name for name in named if name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)]
    return sorted(
        name for name in plain if (directory / name).is_dir() and not (directory / name).is_symlink()
    )


def component_files(directory: Path) -> list[Path]:
    """What lies in the folders of components, weights among it."""
    found = [path for name in component_folders(directory) for path in (directory / name).rglob("*")]
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def is_weights(path: Path) -> bool:
    """Whether a component's file holds weights, or says which files do."""
    return path.name.endswith((*WEIGHTS, ".safetensors.index.json", ".bin.index.json", ".msgpack", ".onnx"))
