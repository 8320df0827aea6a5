"""The command on a page makes the same recipe, through a shell, the command line and YAML."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report.html_samples import read

from soupkit.cli.app import run_command_line
from soupkit.cli.options import describe
from soupkit.commands import COMMANDS
from soupkit.recipe.parse import parse_recipe, recipe_to_json
from soupkit.recipe.steps import load_steps
from soupkit.report.html_page import page
from soupkit.report.sections_record import broken, command_line
from soupkit.report.sections_subject import Subject


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_makes_the_recipe_again(name: str, parsed: list[Any]) -> None:
    for example in describe(COMMANDS[name].recipe_type()).examples:
        assert run_command_line(shlex.split(example)[1:]) == 0
        recipe = parsed.pop()
        words = command_line(name, json.loads(json.dumps(recipe_to_json(recipe))))
        assert words[: 1 + len(name.split())] == ["soupkit", *name.split()]
        assert run_command_line(words[1:]) == 0
        assert parsed.pop() == recipe


def test_only_what_was_chosen_is_named() -> None:
    kind = COMMANDS["merge uniform"].recipe_type()
    recipe = parse_recipe(kind, {"refs": ["a", "b c"], "out": "o", "sha256": True, "top": 3})
    words = command_line("merge uniform", recipe_to_json(recipe))
    assert words[:5] == ["soupkit", "merge", "uniform", "a", "b c"]
    assert sorted(words[5:]) == ["--out", "--sha256", "--top", "3", "o"]


def test_a_reference_never_becomes_an_option() -> None:
    words = command_line("merge uniform", {"refs": ["--overwrite", "-x"], "out": "o"})
    assert words[3:] == ["./--overwrite", "./-x", "--out", "o"]


def test_a_value_never_becomes_an_option() -> None:
    words = command_line(
        "merge weighted", {"refs": ["a", "b"], "coefficients": [-0.5, 1.5], "out": "--quiet"}
    )
    assert words[5:] == ["--out=--quiet", "--coefficients=-0.5,1.5"]


def test_options_of_another_version_are_told_as_they_are() -> None:
    recipe = {"refs": ["a"], "strength": 0.5, "fast": True, "slow": False, "none": None, "deep": {"x": 1}}
    for name in ("merge from-tomorrow", "merge uniform"):  # the second lacks `out`
        words = command_line(name, recipe)
        assert words[3:] == ["--refs", "a", "--strength", "0.5", "--fast", "--no-slow"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60), min_size=1
    )
)
def test_a_shell_takes_the_lines_as_one_command(words: list[str]) -> None:
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {broken(words)}"], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words


def test_the_yaml_on_the_page_is_a_recipe(tmp_path: Path) -> None:
    kind = COMMANDS["merge greedy"].recipe_type()
    recipe = parse_recipe(
        kind, {"refs": ["a", "שלום: {x}"], "out": "o", "data": "digits", "score_command": "x '{y}'"}
    )
    record = {"command": "merge greedy", "recipe": recipe_to_json(recipe)}
    (details,) = [
        each for each in read(page(Subject(name="x", record=record))).all("details") if "recipe" in each.text
    ]
    file = tmp_path / "recipe.yaml"
    file.write_text(details.all("pre")[0].text, encoding="utf-8")
    (step,) = load_steps(file).steps
    assert (step.command, step.recipe) == ("merge greedy", recipe)
