"""A method is declared once: in its recipe and its function, which `soupkit methods` and every command go
by."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.commands import COMMANDS, methods
from soupkit.merge.methods import all_methods
from soupkit.recipe.fields import Limits

Save = Callable[..., Path]
README = Path(__file__).parents[2] / "README.md"
RECIPE = '''
"""Recipe of `soupkit merge toy-push`."""

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import BaseOptions


@dataclass(frozen=True, kw_only=True)
class MergeToyPush(BaseOptions):
    """Push a base away from another checkpoint.

    Example: soupkit merge toy-push b --base a --force 0.5 --out soups/pushed
    """

    FAMILY = "toys"
    INPUTS = (1, 1)

    force: tuple[float, ...] = option((1.0,), help="how far, in differences", low=0, high=2)
'''
FUNCTION = '''
"""Toys."""


def toy_push(pieces, *, force):
    """−force · τ (Nobody 1999, arXiv:9901.00001, eq. 0). Memory: a piece."""
    for vectors in pieces:
        yield -force[0] * vectors[0]
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two new files, as if they lay in soupkit: a recipe, and a function."""
    for package, name, text in (
        ("soupkit.recipe.task_vectors", "toy_push", RECIPE),
        ("soupkit.merge.families", "toys", FUNCTION),
    ):
        folder = tmp_path / "added" / package
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text(text)
        found = importlib.import_module(package)
        monkeypatch.setattr(found, "__path__", [*found.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package}.{name}", raising=False)
    monkeypatch.setitem(COMMANDS, "merge toy-push", methods()["merge toy-push"])
    yield
    for name in ("soupkit.recipe.task_vectors.toy_push", "soupkit.merge.families.toys"):
        sys.modules.pop(name, None)


def call(*words: object) -> int:
    return run_command_line([str(word) for word in words])


@pytest.mark.usefixtures("toy")
def test_two_files_add_a_method(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = [
        save(name, {"w": np.array([1.0, value], np.float32)})
        for name, value in (("a", 2.0), ("b", 4.0), ("c", 5.0))
    ]
    words = ["merge", "toy-push", refs[1], "--base", refs[0], "--lambda", "0.5", "--quiet"]
    assert call(*words, "--force", "1", "--set", "w: {force: 1.5}", "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(Checkpoint(tmp_path / "out")["w"], np.array([1.0, 0.5], np.float32))
    assert call("reproduce", tmp_path / "out", "--out", tmp_path / "again", "--quiet") == 0
    capsys.readouterr()
    assert call(*words, "--force", "3", "--out", tmp_path / "far") == 2
    assert "force is 3, expected a number in [0, 2]" in capsys.readouterr().err
    assert call(*words, "--set", "w: {force: 3}", "--out", tmp_path / "far") == 2
    assert "w: force is 3" in capsys.readouterr().err
    assert call(*words, refs[2], "--out", tmp_path / "two") == 2
    assert "toy-push takes 1 checkpoints, the base apart; the references name 2" in capsys.readouterr().err
    assert call("methods", "--markdown") == 0
    row = "| `toy-push` | [Nobody 1999](https://arxiv.org/abs/9901.00001) | no | required | 1 | a piece |"
    assert row in capsys.readouterr().out.splitlines()
    assert call("merge", "toy-push", "--help") == 0
    assert "how far, in differences" in capsys.readouterr().out


def test_every_method_cites_a_paper_and_tells_its_memory() -> None:
    for name, method in all_methods().items():
        assert method.paper, f"{name}: no (Author YEAR) in the docstring of its function"
        assert method.memory, f"{name}: no 'Memory: …' in the docstring of its function"


def test_the_table_of_the_readme_is_the_command_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("methods", "--markdown") == 0
    assert capsys.readouterr().out.strip() in README.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("limits", "value", "message"),
    [
        (Limits(0), -1, "x is -1, expected at least 0"),
        (Limits(0, above=True), 0, "x is 0, expected more than 0"),
        (Limits(0, 1), float("nan"), r"x is nan, expected a number in \[0, 1\]"),
        (Limits(0, 1, above=True), 0, r"x is 0, expected a number in \(0, 1\]"),
    ],
)
def test_limits_say_what_they_are(limits: Limits, value: float, message: str) -> None:
    with pytest.raises(Exception, match=message):
        limits.check("x", value)
    limits.check("x", 0.5)
