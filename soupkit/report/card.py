"""The model card (README.md) of a soup: ready for the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from soupkit.checkpoint.config.companions import config_name
from soupkit.checkpoint.source import Source
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.report.tables import split_label
from soupkit.visible import in_one_line

MAX_ROWS = 100
_REPOSITORY = re.compile(r"[\w./-]+")
_MARKS = re.compile(r"[\\`*\[\]<>#!|~&$]|(?<!\w)_|_(?!\w)|^[-+=]|(?<=:)//|(?<=www)\.")
LONGEST = 200


def model_card(manifest: Manifest, out: Path, first: Source) -> str:
    """Markdown with Hub metadata: what the soup is, of what, how good, and the command that makes it
    again."""
    parts = [
        _metadata(manifest, first),
        f"# {plain(out.name)}",
        f"Made with {code(f'soupkit {manifest.command}')} (soupkit {plain(manifest.soupkit)}) "
        f"from {len(manifest.inputs)} checkpoints.",
        _given_way(manifest),
        _ingredients(manifest),
        _metrics(manifest.metrics, manifest.notes),
        "`soupkit.json` holds the whole record: `soupkit verify` checks the weights against it, "
        "`soupkit reproduce` makes them again.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _given_way(manifest: Manifest) -> str:
    """Said where a learned soup was worse than the uniform one, which these weights are then."""
    verdict = manifest.notes.get("against_uniform")
    if not isinstance(verdict, dict) or not verdict.get("kept_uniform"):
        return ""
    return "These are the weights of the uniform soup: what was learned was clearly worse on held-out data."


def _metadata(manifest: Manifest, first: Source) -> str:
    """The YAML head that the Hub reads; ingredients from the Hub become its links to base models."""
    repositories = {
        entry["reference"].partition("@")[0]: None for entry in manifest.inputs if "commit" in entry
    }
    names = "".join(
        f"\n- {name if _REPOSITORY.fullmatch(name) else json.dumps(name)}" for name in repositories
    )
    bases = f"\nbase_model:{names}\nbase_model_relation: merge" if names else ""
    return f"---\nlibrary_name: {_library(first)}\ntags:\n- model-soup\n- merge\n- soupkit{bases}\n---"


def _library(first: Source) -> str:
    if config_name(first) == "open_clip_config.json":
        return "open_clip"
    return "timm" if "pretrained_cfg" in first.config else "transformers" if first.config else "safetensors"


def _ingredients(manifest: Manifest) -> str:
    if manifest.mixture is None:
        return ""
    divisor = manifest.mixture["divisor"]
    matrix = [[value / divisor for value in row] for row in manifest.mixture["coefficients"]]
    lines = ["## Ingredients", "", "| checkpoint | coefficient | content |", "|---|---|---|"]
    rows = list(zip(manifest.inputs, matrix, strict=True))
    for entry, row in rows[:MAX_ROWS]:
        low, high = min(row), max(row)
        coefficient = f"{low:.4g}" if low == high else f"{low:.3g} … {high:.3g} over blocks"
        name = entry["reference"] if "commit" in entry else Path(entry["reference"]).name
        lines.append(f"| {plain(name)} | {coefficient} | {code(str(entry.get('content', '')))} |")
    if len(rows) > MAX_ROWS:
        lines.append(f"\n{len(rows) - MAX_ROWS} more in soupkit.json.")
    return "\n".join(lines)


def _metrics(metrics: Json, notes: Json) -> str:
    if not metrics:
        return ""
    lines = [
        "## Scores",
        "",
        "| split | metric | value | standard error | examples |",
        "|---|---|---|---|---|",
    ]
    for split, scores in metrics.items():
        shown_split = split_label(split, notes)
        for metric, score in scores.items():
            if not isinstance(score, dict) or "value" not in score:
                continue  # a member's metrics: the table is of this output's own
            error = score.get("standard_error")
            shown = "" if error is None else f"{error:.4f}"
            count = score.get("num_examples") or ""
            lines.append(
                f"| {plain(shown_split)} | {plain(metric)} | {score['value']:.4f} | {shown} | {count} |"
            )
    return "\n".join(lines)


def plain(text: str) -> str:
    """A name as Markdown shows it: nothing in it is markup, a link, HTML, the end of a cell or of a line."""
    return in_one_line(_MARKS.sub(_as_entity, text[:LONGEST]))


def code(text: str) -> str:
    """The same between backticks, where only a backtick, a bar and the end of the line mean something."""
    inner = text[:LONGEST].replace("`", "'").replace("|", "\\|")
    return f"`{in_one_line(inner)}`"


def _as_entity(match: re.Match[str]) -> str:
    """A number, which Markdown shows as the character and takes for nothing else, or a backslash."""
    return "".join(f"\\{mark}" if mark in "_*-+=~!#" else f"&#{ord(mark)};" for mark in match[0])
