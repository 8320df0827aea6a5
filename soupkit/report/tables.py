"""Results as a reader sees them: splits, scores and plans, said in one place for commands, cards and pages.

What was selected or learned on is marked wherever a number is printed.
"""

from __future__ import annotations

from collections.abc import Mapping

from soupkit.events import Cell, Report, Table
from soupkit.jsons import Json, JsonView

MARKS = {"selected_on": "selected on", "learned_on": "learned on"}
SCORE_COLUMNS = ("model", "split", "metric", "value", "± s.e.", "n")


def split_label(split: str, notes: JsonView | None = None, *, mark: str | None = None) -> str:
    """A split as a reader says it, with what the model of the number did there: `held-out (selected on)`.

    notes: of the manifest that the number is in; mark: the same said at once, where there is no manifest yet.
    """
    shown = split.replace("_", "-")
    mark = mark or marks(notes or {}).get(split)
    return f"{shown} ({mark})" if mark else shown


def marks(notes: JsonView) -> dict[str, str]:
    """{split: "selected on" or "learned on"} by a manifest's notes."""
    found = {}
    for name, mark in MARKS.items():
        note = notes.get(name)
        split = note.get("split") if isinstance(note, Mapping) else None
        if isinstance(split, str):
            found[split] = mark
    return found


def uniform_label(batch_norm: str, *, has_batch_norm: bool = True) -> str:
    """The uniform soup, and what became of its batch-norm statistics."""
    done = {"refresh": "refreshed", "batch": "refreshed", "average": "averaged", "keep": "of the first"}[
        batch_norm
    ]
    return f"uniform soup, batch norm {done}" if has_batch_norm else "uniform soup"


def with_error(value: float, error: float | None, *, significant: bool = False) -> str:
    """`0.9857 ± 0.0045`: four decimals each; with `significant` four and two digits, whatever the size."""
    formats = (".4g", ".2g") if significant else (".4f", ".4f")
    return f"{value:{formats[0]}}" + ("" if error is None else f" ± {error:{formats[1]}}")


def score_cell(score: JsonView, *, significant: bool = False) -> str:
    """A score as manifests hold it, with its standard error."""
    return with_error(score["value"], score["standard_error"], significant=significant)


def score_rows(
    model: str, metrics: Mapping[str, Mapping[str, JsonView]], notes: JsonView | None = None
) -> list[tuple[Cell, ...]]:
    """One row per split and metric of one model, under SCORE_COLUMNS.

    metrics: as manifests hold them; notes: of the manifest whose marks hold for this model.
    """
    return [
        (
            model,
            split_label(split, notes),
            metric,
            score["value"],
            score["standard_error"],
            score["num_examples"],
        )
        for split, scores in metrics.items()
        for metric, score in scores.items()
    ]


def score_table(title: str, *models: list[tuple[Cell, ...]]) -> Table:
    """The `score_rows` of some models."""
    return Table(title, SCORE_COLUMNS, tuple(row for rows in models for row in rows))


def tell_plan(values: JsonView, report: Report, *, nothing: str, caption: str = "") -> Json:
    """What --dry-run prints: everything is checked by now, and nothing `was written`, `was trained`, …"""
    report(Table(f"plan: nothing {nothing}", ("", ""), tuple(values.items()), caption))
    return {"plan": dict(values)}


def amounts(values: JsonView) -> dict[str, str]:
    """Counts, bytes and names of a plan as it shows them."""
    return {key.replace("_", " "): _amount(value) for key, value in values.items()}


def _amount(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int | float) else str(value or "not known before a download")
