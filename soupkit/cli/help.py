"""What help shows first: commands on shelves, in the order of a job, and of each command the options that
most people need; `--help-all` shows every one."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from typing import Any

from typer.core import TyperGroup

from soupkit.asked import Recipe
from soupkit.commands import COMMANDS

ALL = "--help-all"
SHELVES = {
    "Merge": ("merge", "extract-lora"),
    "Make ingredients": ("finetune", "finetune-sweep", "train-population", "fge"),
    "Judge": ("evaluate", "ensemble", "report"),
    "Align": ("align", "repair", "barrier"),
    "Curves": ("curve", "chain", "plane"),
    "Files": ("convert", "export", "pull", "push", "inspect", "diff", "verify", "reproduce", "cache"),
    "All at once": ("demo", "run"),
    "About soupkit": ("methods", "env"),
}
"""Commands and groups as `soupkit --help` lists them."""
SHELVES_OF_RECIPES = {
    "merge": "Averages",
    "averages": "Along a training",
    "soup": "Chosen or learned on data",
    "task_vectors": "Of task vectors: weights minus --base",
    "methods": "Of weights",
}
"""Where a merge is listed, by the module of its recipe."""
OWN_SHELF = {
    "merge greedy": SHELVES_OF_RECIPES["soup"],
    "merge mergekit": "Files of others",
}
FIRST = ("out", "base", "data", "model", "score_command")
"""Fields that every basic help shows where the command has them."""
ROOM = 18
"""Lines for options, so that all of a basic help fits on 40 lines of 80 columns."""
_HELP_COLUMNS = 36


class InOrder(TyperGroup):
    """A group that lists its commands as the shelves have them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of SHELVES; those on none keep theirs, at the end."""
        order = {name: place for place, name in enumerate(sum(SHELVES.values(), ()))}
        return sorted(super().list_commands(ctx), key=lambda name: order.get(name, len(order)))


def shelf_of(name: str) -> str | None:
    """The heading under which a command, or a group, is listed; None: no heading of its own."""
    if name in OWN_SHELF:
        return OWN_SHELF[name]
    if name.startswith("merge "):
        parts = COMMANDS[name].recipe.partition(":")[0].split(".")
        return next((shelf for part, shelf in SHELVES_OF_RECIPES.items() if part in parts[2:]), None)
    return next((shelf for shelf, names in SHELVES.items() if name in names), None)


def basic(kind: type[Recipe]) -> tuple[str, ...]:
    """The fields of a recipe that its basic help shows, in this order: what must be given, FIRST, and of its
    other options, its own before those that it shares, as many as there is room for."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    needed = [name for name, field in fields.items() if _is_needed(field)]
    first = [name for name in FIRST if name in fields]
    own = [name for base in kind.__mro__ for name in inspect.get_annotations(base) if name in fields]
    shown = dict.fromkeys([*needed, *first])
    room = ROOM - sum(_lines(fields[name]) for name in shown)
    for name in own:
        if name not in shown:
            room -= _lines(fields[name])
            if room >= 0:
                shown[name] = None
    return tuple(sorted(shown, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)))


def _is_needed(field: dataclasses.Field[object]) -> bool:
    return bool(field.metadata["positional"]) or field.default is dataclasses.MISSING


def _lines(field: dataclasses.Field[object]) -> int:
    default = (
        "" if field.default in (dataclasses.MISSING, None, (), False) else f" [default: {field.default}]"
    )
    return len(textwrap.wrap(field.metadata["help"] + default, _HELP_COLUMNS)) or 1
