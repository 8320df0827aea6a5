"""Imports go one way, and torch stays out of what needs no model."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from house.package import FILES, PACKAGE, name_of, tree_of

FLOOR = {
    *(
        "errors",
        "events",
        "world",
        "manifest",
        "whole",
        "visible",
        "processor",
        "metrics",
        "commands",
        "recipe",
    ),
    *("identity", "command_identity", "given", "jsons", "remembered", "asked", "exhausted"),
}
LEVELS = [
    FLOOR,
    {"checkpoint"},
    {"task"},
    {"soup", "merge", "align", "curve", "train", "report"},
    {"stages", "integrations"},
    {"jobs"},
    {"api"},
    {"soups", "cli"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
OUTSIDE = {"__init__", "__main__"}
MAY_IMPORT_MERGE = {"soup", "curve", "train"}
TORCH_FREE = FLOOR | {"checkpoint", "merge", "cli"}
TORCH = {"torch", "torchvision", "timm", "open_clip"}
DATA_FREE_COMMANDS = (
    "merge uniform",
    "merge trajectory",
    "merge weighted",
    "inspect",
    "diff",
    "verify",
    "reproduce",
    "run",
)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, *, types: bool = True, functions: bool = True) -> set[str]:
    """The full names of the modules that a file imports; a relative import would be one too many ways to say
    it.

    Without types: not under `if TYPE_CHECKING:`, which never runs. Without functions: only when it is
    imported itself.
    """
    found: set[str] = set()
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: relative import"
            ours = (node.module or "").partition(".")[0] == "soupkit"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names if ours)}
        elif isinstance(node, ast.FunctionDef) and not functions:
            continue
        elif isinstance(node, ast.If) and not types and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
        elif isinstance(node, ast.stmt | ast.Module | ast.ExceptHandler | ast.match_case):
            waiting += ast.iter_child_nodes(node)
    return found


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


def test_every_room_has_its_level() -> None:
    """A new room gets a place in LEVELS and in the README's picture."""
    assert {room_of(path) for path in FILES} - LEVEL.keys() == OUTSIDE


def test_imports_go_one_way() -> None:
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        if room_of(path) not in OUTSIDE
        for name in imported(path)
        if not allowed(room_of(path), name)
    ]
    assert not wrong


def allowed(room: str, name: str) -> bool:
    """Only the command line knows how it looks; of ours, what lies below."""
    package, _, rest = name.partition(".")
    other = rest.split(".")[0]
    if package in ("typer", "rich", "click"):
        return room == "cli"
    return package != "soupkit" or other not in LEVEL or may_import(room, other)


def test_a_job_imports_no_other_job() -> None:
    """What two jobs share is a stage; a job that runs another command does so by the table of commands."""
    names = ((path, name) for path in FILES for name in imported(path))
    assert not [f"{name_of(path)} imports {name}" for path, name in names if name.startswith("soupkit.jobs")]


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions count too."""
    names = {name_of(path) for path in FILES}
    needs = {name_of(path): imported(path, types=False) & names for path in FILES}
    while leaves := {name for name, others in needs.items() if not others - {name}}:
        needs = {name: others - leaves for name, others in needs.items() if name not in leaves}
    assert not needs, f"in circles, or above one: {sorted(needs)}"


def test_no_torch_at_module_level() -> None:
    for path in FILES:
        if room_of(path) in TORCH_FREE | OUTSIDE:
            found = {name.partition(".")[0] for name in imported(path, types=False, functions=False)}
            assert not TORCH & found, name_of(path)


def heavy_after(codes: Iterable[str]) -> list[str]:
    """Which of torch and its friends are loaded after running each code, in forks of one process that ran
    nothing."""
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
