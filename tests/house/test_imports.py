"""Imports go one way, and torch stays out of what needs no model."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "soupkit"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOOR = {
    *("errors", "events", "world", "manifest", "whole", "visible", "processor", "metrics", "commands", "recipe"),
    *("identity", "command_identity", "given", "remembered"),
}
LEVELS = [
    FLOOR,
    {"checkpoint"},
    {"task"},
    {"soup", "merge", "align", "curve", "train", "report"},
    {"stages"},
    {"jobs"},
    {"api"},
    {"soups", "cli"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
MAY_IMPORT_MERGE = {"soup", "curve", "train"}
TORCH_FREE = FLOOR | {"checkpoint", "merge", "cli"}
TORCH = {"torch", "torchvision", "timm", "open_clip"}
DATA_FREE_COMMANDS = ("merge uniform", "merge weighted", "inspect", "diff", "verify", "reproduce", "run")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names of the modules that a tree imports; a relative import would be one too many ways to say it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            ours = (node.module or "").partition(".")[0] == "soupkit"
            yield from (f"{node.module}.{alias.name}" for alias in node.names if ours)
            yield node.module or ""


class WithoutTypes(ast.NodeTransformer):
    """Takes out `if TYPE_CHECKING:`, which never runs."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test).endswith("TYPE_CHECKING") else self.generic_visit(node)


class WithoutFunctions(WithoutTypes):
    """Takes out what does not run when a module is imported."""

    def visit_FunctionDef(self, _node: ast.FunctionDef) -> None:
        return None


def at_run_time(tree: ast.Module) -> ast.Module:
    """The tree as it runs, sooner or later."""
    stripped: ast.Module = WithoutTypes().visit(tree)
    return stripped


def at_module_level(tree: ast.Module) -> ast.Module:
    """The tree as it runs when it is imported."""
    stripped: ast.Module = WithoutFunctions().visit(tree)
    return stripped


def may_import(room: str, other: str) -> bool:
    if room == other or LEVEL[other] < LEVEL[room]:
        return True
    return {room, other} <= FLOOR or (other == "merge" and room in MAY_IMPORT_MERGE)


def test_the_rule_itself() -> None:
    assert may_import("jobs", "checkpoint")
    assert may_import("soup", "merge")
    assert not may_import("merge", "soup")
    assert not may_import("report", "merge")
    assert not may_import("checkpoint", "merge")
    assert not may_import("checkpoint", "task")
    assert not may_import("recipe", "checkpoint")
    assert not may_import("jobs", "cli")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in LEVEL, f"{room} is a new room: give it a place in LEVELS and in the README's picture"
    for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package == "soupkit" and other in LEVEL:
            assert may_import(room, other), f"{room} must not import {name}"
        if room != "cli":
            assert package not in ("typer", "rich", "click"), f"only cli may import {package}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_job_imports_no_other_job(path: Path) -> None:
    """What two jobs share is a stage; a job that runs another command does so by the table of commands."""
    others = [name for name in imported(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith("soupkit.jobs")]
    assert not others, f"what it takes from {', '.join(others)} belongs to soupkit.stages"


ONE_ALGEBRA = {"soupkit.align.graph.axes", "soupkit.align.graph.unify"}


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions count too; the axis algebra alone is defined by two files in terms of each other."""
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    needs = {
        name: {other for other in imported(at_run_time(ast.parse(path.read_text(encoding="utf-8")))) if other in names}
        for name, path in names.items()
    }
    needs["soupkit.align.graph.axes"] -= ONE_ALGEBRA
    while leaves := {name for name, others in needs.items() if not others}:
        needs = {name: others - leaves for name, others in needs.items() if name not in leaves}
    assert not needs, f"in circles, or above one: {sorted(needs)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_torch_at_module_level(path: Path) -> None:
    if room_of(path) in TORCH_FREE | {"__init__", "__main__"}:
        tree = at_module_level(ast.parse(path.read_text(encoding="utf-8")))
        assert not TORCH & {name.partition(".")[0] for name in imported(tree)}


def heavy_after(codes: Iterable[str]) -> list[str]:
    """Which of torch and its friends are loaded after running each code, in forks of one process that ran nothing."""
    check = f"""
import os, sys
for code in sys.argv[1:]:
    if (child := os.fork()) == 0:
        exec(code)
        print(sorted({TORCH!r} & set(sys.modules)), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""
    done = subprocess.run([sys.executable, "-c", check, *codes], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_import_soupkit_imports_no_torch() -> None:
    assert heavy_after(["import soupkit", "import soupkit.cli.app"]) == ["[]", "[]"]


def test_jobs_without_data_import_no_torch() -> None:
    code = "from soupkit.commands import COMMANDS\nCOMMANDS[{!r}].load_job()"
    found = heavy_after(code.format(name) for name in DATA_FREE_COMMANDS)
    assert dict(zip(DATA_FREE_COMMANDS, found, strict=True)) == dict.fromkeys(DATA_FREE_COMMANDS, "[]")
