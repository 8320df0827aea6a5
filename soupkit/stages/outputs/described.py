"""Ingredients and outputs as a manifest records them; `soupkit.stages.inputs.recorded` opens them again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from soupkit.checkpoint.config.modules import module_files
from soupkit.checkpoint.config.pipelines import component_files
from soupkit.checkpoint.hashing import file_sha256, file_xxh3
from soupkit.checkpoint.seen import carried
from soupkit.checkpoint.source import Source
from soupkit.jsons import Json


def describe_inputs(
    checkpoints: Sequence[Source], out: Path, contents: Sequence[str], *, sha256: bool = False
) -> list[Json]:
    """The manifest's record of each ingredient; `path` is relative to the output, so that both may move
    together.

    `seen`: the data that it and what it was made of were fitted to, each with the first ingredient that has
    it.
    """
    described = []
    for checkpoint, content, seen in zip(checkpoints, contents, carried(checkpoints), strict=True):
        entry: Json = {"reference": checkpoint.reference, **checkpoint.record()}
        if "path" in entry:
            entry["path"] = os.path.relpath(entry["path"], out.resolve())
        entry.setdefault("content", content)
        if sha256 and "sha256" not in entry:
            entry["sha256"] = {file.name: file_sha256(file) for file in checkpoint.files}
        described.append(entry | ({"seen": seen} if seen else {}))
    return described


def describe_outputs(directory: Path, content: str, *, sha256: bool = False) -> Json:
    """The manifest's record of what was written: the content hash of the weights, and every file."""
    files: Json = {}
    nested = [*module_files(directory), *component_files(directory)]
    for path in [*sorted(path for path in directory.iterdir() if path.is_file()), *nested]:
        name = path.relative_to(directory).as_posix()
        files[name] = {"bytes": path.stat().st_size}
        if path.suffix != ".safetensors" or path in nested:
            files[name]["xxh3-128"] = file_xxh3(path)
        elif sha256:
            files[name]["sha256"] = file_sha256(path)
    return {"content": content, "files": files}
