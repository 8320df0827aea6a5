"""Commands, recipe files and the README agree with each other."""

import ast
import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from soupkit.cli.app import run_command_line
from soupkit.cli.options import describe
from soupkit.commands import COMMANDS
from soupkit.recipe.steps import load_steps

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RECIPES = sorted([*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "soupkit").rglob("*.yaml")])
COMMON_OPTIONS = {"json", "quiet", "help"}


def blocks(language: str) -> list[str]:
    """The code blocks of the README in one language."""
    fences = re.findall(
        r"^```(\w*)\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return [text for name, text in fences if name == language]


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of every call of soupkit in some shell text."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[|;]|\s>\s", line.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            while words and "=" in words[0]:  # VARIABLE=value before the command
                words.pop(0)
            if words[:1] == ["torchrun"] and "-m" in words:
                words = ["python", *words[words.index("-m") :]]
            if words and Path(words[0]).name == "soupkit":
                yield words[1:]
            elif words[:3] == ["python", "-m", "soupkit"]:
                yield words[3:]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_explained(name: str, parsed: list[Any]) -> None:
    kind = COMMANDS[name].recipe_type()
    description = describe(kind)
    assert description.summary.endswith((".", ":"))
    assert not description.summary.startswith(
        f"{kind.__name__}("
    )  # what dataclass writes when there is no docstring
    assert len(description.summary) <= 120
    assert description.examples
    for example in description.examples:
        assert example.startswith(f"soupkit {name} ")
        (arguments,) = command_lines(example)
        assert run_command_line(arguments) == 0
        assert isinstance(parsed.pop(), kind)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name: str) -> None:
    for field in dataclasses.fields(COMMANDS[name].recipe_type()):
        assert field.metadata["help"].strip(), field.name
        assert "%%" not in field.metadata["help"], field.name
        assert field.name not in COMMON_OPTIONS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_job_can_be_loaded(name: str) -> None:
    assert callable(COMMANDS[name].load_job())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_file_is_valid(path: Path) -> None:
    loaded = load_steps(path)
    assert loaded.steps
    assert loaded.description


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.is_relative_to(ROOT / "recipes")], ids=lambda path: path.name
)
def test_every_recipe_file_opens_with_the_command_that_runs_it(path: Path, parsed: list[Any]) -> None:
    head = path.read_text(encoding="utf-8").split("\nsteps:")[0]
    line = re.search(rf"soupkit run {re.escape(str(path.relative_to(ROOT)))}.*", head)
    assert line, f"its head does not say `soupkit run {path.relative_to(ROOT)}`"
    (arguments,) = command_lines(line[0].rstrip("` "))
    assert run_command_line(arguments) == 0
    assert parsed


def test_the_commands_of_the_readme_exist(parsed: list[Any]) -> None:
    lines = [
        line
        for language in ("", "sh", "bash", "console")
        for text in blocks(language)
        for line in command_lines(text)
    ]
    assert len(lines) >= 3
    for arguments in lines:
        assert run_command_line(arguments) == 0, f"soupkit {shlex.join(arguments)}"
    for recipe in parsed:
        if type(recipe).__name__ == "Run":
            assert (ROOT / recipe.file).is_file(), recipe.file


def test_what_the_readme_imports_exists() -> None:
    for text in blocks("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "soupkit":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("name", ["test", "demo"])
def test_ci_finds_the_commands_of_the_readme(name: str) -> None:
    text = README.read_text(encoding="utf-8")
    block = re.search(rf"^<!-- ci: {name} -->\n+```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert block, f"README.md has no code block after <!-- ci: {name} -->"
    assert "venv" in block[1]
    assert {"test": "pytest", "demo": "soupkit demo"}[name] in block[1]
