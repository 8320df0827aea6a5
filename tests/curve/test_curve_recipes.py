"""The recipes of curves: every file is valid and opens with the command that runs it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from soupkit.cli.app import run_command_line
from soupkit.recipe.steps import load_steps

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "curve").glob("*.yaml"))


def test_all_of_them_are_here() -> None:
    names = {path.stem for path in RECIPES}
    assert {"digits-curve", "digits-fge", "vgg16-cifar", "preresnet164-cifar", "wrn28x10-cifar"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_its_head_is_the_command_that_dry_runs_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = path.read_text(encoding="utf-8").split("\nsteps:")[0]
    line = re.search(rf"soupkit (run recipes/curve/{re.escape(path.name)}.*)", head)
    assert line
    arguments = [word.replace("recipes/curve/", f"{path.parent}/") for word in shlex.split(line[1])]
    monkeypatch.chdir(tmp_path)
    assert run_command_line([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(step.name in shown for step in load_steps(path).steps)
    assert list(tmp_path.iterdir()) == []
