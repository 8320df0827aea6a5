"""Outputs that hold findings instead of weights: scores, curves, planes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.stages.outputs.described import describe_outputs

SCORES_NAME = "scores.json"


def write_scores(directory: Path, manifest: Manifest) -> None:
    """scores.json: the manifest's metrics and notes."""
    text = json.dumps({"metrics": manifest.metrics, **manifest.notes}, indent=1, ensure_ascii=False)
    (directory / SCORES_NAME).write_text(f"{text}\n", encoding="utf-8")


def write_findings(directory: Path, manifest: Manifest, inputs: Sequence[Json] | None = None) -> Manifest:
    """Write the manifest, which then knows every file of the directory, and its `inputs` by content where
    given."""
    files = describe_outputs(directory, "")["files"]
    described = manifest.inputs if inputs is None else list(inputs)
    manifest = replace(manifest, inputs=described, outputs={"files": files})
    manifest.write(directory)
    return manifest
