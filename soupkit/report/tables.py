"""What is selected or learned on is marked wherever a number is printed: here, for tables, cards and pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARKS = {"selected_on": "selected on", "learned_on": "learned on"}


def split_label(split: str, notes: Mapping[str, Any] | None = None, *, mark: str | None = None) -> str:
    """A split as a reader says it, with what the model of the number did there: `held-out (selected on)`.

    notes: of the manifest that the number is in; mark: the same said at once, where there is no manifest yet.
    """
    shown = "held-out" if split == "held_out" else split.replace("_", "-")
    mark = mark or marks(notes or {}).get(split)
    return f"{shown} ({mark})" if mark else shown


def marks(notes: Mapping[str, Any]) -> dict[str, str]:
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
    done = {"refresh": "refreshed", "batch": "refreshed", "average": "averaged", "keep": "of the first"}[batch_norm]
    return f"uniform soup, batch norm {done}" if has_batch_norm else "uniform soup"
