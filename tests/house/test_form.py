"""The house rules that can be counted: sizes, names, docstrings, public names."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import soupkit

PACKAGE = Path(__file__).parents[2] / "soupkit"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 300
LONGEST_FUNCTION = 60
MOST_FILES = 25
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "handler", "misc"}
Function = ast.FunctionDef | ast.AsyncFunctionDef

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_things(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node


@each_file
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(parse(path)):
        if isinstance(node, Function):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda folder: folder.name)
def test_a_folder_is_seen_at_a_glance(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES


@each_file
def test_public_things_have_docstrings(path: Path) -> None:
    tree = parse(path)
    if tree.body:
        assert ast.get_docstring(tree), "the module says nothing of itself"
    bare = [node.name for node in public_things(tree) if not ast.get_docstring(node)]
    assert not bare, f"without a docstring: {', '.join(bare)}"


@each_file
def test_names_say_something(path: Path) -> None:
    assert not EMPTY_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)


def test_public_names_exist_and_are_documented() -> None:
    assert soupkit.__all__
    assert len(set(soupkit.__all__)) == len(soupkit.__all__)
    for name in soupkit.__all__:
        value = getattr(soupkit, name)
        assert name == "__version__" or value.__doc__, f"soupkit.{name} has no docstring"
        assert name in dir(soupkit)


def test_every_module_of_the_package_can_be_imported() -> None:
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        importlib.import_module(".".join(part for part in parts if part != "__init__"))
