"""The recipes of alignment: all are valid, and the small one reaches what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from soupkit.events import silent
from soupkit.jobs.recipes.run import run
from soupkit.recipe.run import Run
from soupkit.recipe.steps import load_steps
from soupkit.task.images.models import build, parse_model
from soupkit.world import World

FOLDER = Path(__file__).parents[2] / "recipes" / "align"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_recipe_is_valid_and_says_how_to_run_it(path: Path) -> None:
    loaded = load_steps(path)
    assert loaded.description
    assert f"soupkit run recipes/align/{path.name}" in path.read_text(encoding="utf-8")
    for step in loaded.steps:
        model = getattr(step.recipe, "model", None)
        if model is not None:
            with torch.device("meta"):
                assert sum(parameter.numel() for parameter in build(parse_model(model)).parameters()) > 0


@pytest.mark.skipif("SOUPKIT_LONG" not in os.environ, reason="20 seconds; CI runs the recipe itself")
def test_the_small_recipe_reaches_what_it_says(tmp_path: Path) -> None:
    """Its `expect` conditions are the test."""
    out = tmp_path / "out"
    result = run(
        Run(file=FOLDER / "digits-aligned-soup.yaml", set=(f"out={out}", "epochs=4")), World("cpu", 1), silent
    )
    assert (out / "soup" / "model.safetensors").is_file()
    assert (out / "barrier" / "barrier.csv").is_file()
    assert result
