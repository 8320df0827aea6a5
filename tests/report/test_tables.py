"""One place says what a split was to the model whose number stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.manifest import Manifest
from soupkit.report.card import model_card
from soupkit.report.sections_scores import score_section
from soupkit.report.sections_subject import Subject
from soupkit.report.tables import split_label, uniform_label

SCORES = {split: {"top1": {"value": 0.5, "standard_error": 0.1, "num_examples": 25}} for split in ("held_out", "test")}


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
