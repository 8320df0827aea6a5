"""One place says what a split was to the model whose number stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.events import Event, Table
from soupkit.manifest import Manifest
from soupkit.report.card import model_card
from soupkit.report.sections_scores import score_section
from soupkit.report.sections_subject import Subject
from soupkit.report.tables import (
    amounts,
    score_cell,
    score_rows,
    score_table,
    split_label,
    tell_plan,
    uniform_label,
    with_error,
)

SCORES = {
    split: {"top1": {"value": 0.5, "standard_error": 0.1, "num_examples": 25}}
    for split in ("held_out", "test")
}


@pytest.mark.parametrize(
    ("notes", "split", "shown"),
    [
        ({}, "held_out", "held-out"),
        ({"selected_on": {"split": "held_out"}}, "held_out", "held-out (selected on)"),
        ({"selected_on": {"split": "held_out"}}, "test", "test"),
        ({"learned_on": {"split": "held_out"}}, "held_out", "held-out (learned on)"),
        ({"learned_on": {"split": "train"}}, "held_out", "held-out"),
        ({"learned_on": {"split": "train"}}, "train", "train (learned on)"),
        ({"learned_on": 3, "selected_on": {"split": None}}, "held_out", "held-out"),
    ],
)
def test_a_split_says_what_it_was_used_for(notes: dict[str, Any], split: str, shown: str) -> None:
    assert split_label(split, notes) == shown


@pytest.mark.parametrize(("note", "mark"), [("selected_on", "selected on"), ("learned_on", "learned on")])
def test_cards_and_pages_say_it_alike(save: Any, note: str, mark: str) -> None:
    import numpy as np

    model = Checkpoint(save("m", {"w": np.ones(1, np.float32)}))
    notes = {note: {"split": "held_out", "num_examples": 25}}
    manifest = Manifest(command="merge greedy", recipe={}, metrics=SCORES, notes=notes)
    card = model_card(manifest, Path("soup"), model)
    assert f"| held-out ({mark}) | top1 |" in card
    assert "| test | top1 |" in card
    page = str(score_section(Subject("soup", record=manifest.to_json())))
    assert f"held-out ({mark}), n = 25" in page
    assert f"test ({mark})" not in page


def test_a_uniform_soup_says_what_became_of_batch_norm() -> None:
    assert uniform_label("refresh") == "uniform soup, batch norm refreshed"
    assert uniform_label("average") == "uniform soup, batch norm averaged"
    assert uniform_label("refresh", has_batch_norm=False) == "uniform soup"


def test_scores_of_models_in_one_table() -> None:
    notes = {"selected_on": {"split": "held_out"}}
    table = score_table("search", score_rows("uniform", SCORES), score_rows("best", SCORES, notes))
    assert table.columns == ("model", "split", "metric", "value", "± s.e.", "n")
    assert table.rows == (
        ("uniform", "held-out", "top1", 0.5, 0.1, 25),
        ("uniform", "test", "top1", 0.5, 0.1, 25),
        ("best", "held-out (selected on)", "top1", 0.5, 0.1, 25),
        ("best", "test", "top1", 0.5, 0.1, 25),
    )


def test_a_number_and_its_error() -> None:
    assert with_error(0.98571, 0.00449) == "0.9857 ± 0.0045"
    assert with_error(0.5, None) == "0.5000"
    assert score_cell({"value": 12.34567, "standard_error": 0.1234}, significant=True) == "12.35 ± 0.12"


def test_a_plan_is_told_and_returned() -> None:
    events: list[Event] = []
    values = {"bytes_to_write": 12345, "files": ["a", "b"]}
    assert tell_plan(values, events.append, nothing="was written") == {"plan": values}
    assert amounts(values) == {"bytes to write": "12,345", "files": "a, b"}
    assert isinstance(events[0], Table)
    assert events[0].title == "plan: nothing was written"
