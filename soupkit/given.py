"""What the options of a command name beside checkpoints: data, a scorer, files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from soupkit.command_identity import command_identity
from soupkit.identity import MOST_OF_A_FILE, data_identity, digest, file_identity
from soupkit.jsons import JsonView


def given_by(recipe: JsonView) -> dict[str, str]:
    """What the options of a command name beside checkpoints: {option: identity} of data, scorer, and files.

    recipe: as a manifest records it. Checkpoints are a manifest's inputs and are recorded there by their
    weights.
    """
    found: dict[str, str] = {}
    if data := recipe.get("data"):
        data_dir = recipe.get("data_dir")
        found["data"] = data_identity(str(data), None if data_dir is None else Path(str(data_dir)))
    if command := recipe.get("score_command"):
        found["score_command"] = command_identity(str(command))
    for key, value in recipe.items():
        if key not in ("data", "data_dir", "score_command", "out"):
            files = [Path(text) for text in _texts(value) if _is_file(text)]
            if files:
                found[key] = digest([[str(path), file_identity(path, most=MOST_OF_A_FILE)] for path in files])
    return found


def _texts(value: object) -> Iterator[str]:
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, str | Path):
            yield str(item)


def _is_file(text: str) -> bool:
    """A file that is no weight file: those are inputs."""
    try:
        return "\n" not in text and not text.endswith(".safetensors") and Path(text).is_file()
    except (OSError, ValueError):
        return False
