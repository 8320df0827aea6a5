"""The house rules that can be counted: sizes, names, docstrings, public names."""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from house.package import FILES, PACKAGE, name_of, tree_of

import soupkit

LONGEST_FILE = 325
LONGEST_FUNCTION = 60
MOST_FILES = 25
MOST_ANY = 0.005
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "handler", "misc"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_things(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def functions() -> Iterator[tuple[Path, Function]]:
    for path in FILES:
        yield from ((path, node) for node in ast.walk(tree_of(path)) if isinstance(node, Function))


def test_files_and_functions_are_short() -> None:
    long = {
        path: num
        for path in FILES
        if (num := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long
    assert not [
        f"{path}: {f.name}" for path, f in functions() if (f.end_lineno or 0) - f.lineno >= LONGEST_FUNCTION
    ]


def test_a_folder_is_seen_at_a_glance() -> None:
    sizes = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert not {folder: size for folder, size in sizes.items() if size > MOST_FILES}


def test_public_things_have_docstrings() -> None:
    silent = [path for path in FILES if tree_of(path).body and not ast.get_docstring(tree_of(path))]
    assert not silent, "modules that say nothing of themselves"
    things = ((path, node) for path in FILES for node in public_things(tree_of(path)))
    assert not [f"{path}: {node.name}" for path, node in things if not ast.get_docstring(node)]


def test_names_say_something() -> None:
    assert not [path for path in FILES if EMPTY_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)]


def test_public_names_exist_and_are_documented() -> None:
    assert soupkit.__all__
    assert len(set(soupkit.__all__)) == len(soupkit.__all__)
    for name in soupkit.__all__:
        value = getattr(soupkit, name)
        assert name == "__version__" or value.__doc__, f"soupkit.{name} has no docstring"
        assert name in dir(soupkit)


def test_every_module_of_the_package_can_be_imported() -> None:
    for path in FILES:
        inside = path.parent.name == "integrations" and path.stem in (
            "accelerate",
            "lightning",
            "transformers",
        )
        if not inside or find_spec(path.stem):  # the libraries of others, which only their users have
            importlib.import_module(name_of(path))


def test_any_is_rare_and_no_recipe_is_any() -> None:
    lines = [line for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(re.search(r"\bAny\b", line) is not None for line in lines) < MOST_ANY * len(lines)
    assert not [line for line in lines if "recipe: Any" in line], "asked.py has protocols of recipes"
