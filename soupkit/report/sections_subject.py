"""What a page is about, and how its record is read: whatever a manifest holds, a page comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from soupkit.jsons import Json, JsonView
from soupkit.metrics import Direction, known_direction

DEEPEST = 6
SPLITS = ("held_out", "test", "train")


@dataclass(frozen=True)
class Subject:
    """One output of soupkit, a folder of outputs, or a checkpoint.

    record: the manifest, {} where there is none. facts: what `inspect` tells of the weights. sizes: the bytes
    of the inputs that are still there, by reference. plots: images that lie in the directory. path_scores:
    what curve.json holds. parts: outputs inside of this one.
    """

    name: str
    place: str = ""
    record: JsonView = field(default_factory=dict)
    facts: JsonView = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    plots: Mapping[str, bytes] = field(default_factory=dict)
    path_scores: JsonView = field(default_factory=dict)
    parts: Sequence[Subject] = ()

    @property
    def command(self) -> str:
        """The command that made it; empty where none is recorded."""
        command = self.record.get("command")
        return command if isinstance(command, str) else ""

    @property
    def recipe(self) -> Json:
        """Its options."""
        return mapping(self.record.get("recipe"))

    @property
    def inputs(self) -> list[Json]:
        """The records of its ingredients."""
        return [entry for entry in sequence(self.record.get("inputs")) if isinstance(entry, dict)]

    @property
    def notes(self) -> Json:
        """What the command added."""
        return mapping(self.record.get("notes"))


class Score(NamedTuple):
    """A number with its standard error and sample size."""

    value: float
    error: float | None
    num: float | None


Keys = tuple[str, ...]
"""Keys from the outside in: ("run-000", "held_out", "top1")."""


def mapping(value: object) -> Json:
    """The mapping that a value is, or an empty one."""
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def sequence(value: object) -> list[Any]:
    """The list that a value is, or an empty one."""
    return list(value) if isinstance(value, list | tuple) else []


def number(value: object) -> float | None:
    """The finite number that a value is, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return float(value) if math.isfinite(value) else None


def score(value: object) -> Score | None:
    """The score that a value is: {"value": …, "standard_error": …, "num_examples": …}."""
    if not isinstance(value, Mapping) or not {"standard_error", "num_examples"} & value.keys():
        return None
    found = number(value.get("value"))
    if found is None:
        return None
    return Score(found, number(value.get("standard_error")), number(value.get("num_examples")))


def scores(value: object) -> dict[Keys, Score]:
    """Every score inside of nested mappings, by its keys; a score alone has none."""
    return {path: found for path, item in leaves(value) if path and (found := score(item))}


def leaves(
    value: object, is_leaf: Callable[[object], object] = score, *, path: Keys = ()
) -> Iterator[tuple[Keys, Any]]:
    """What nested mappings hold, with the keys that lead there; leaves and what lies too deep stay whole."""
    if not isinstance(value, Mapping) or not value or len(path) >= DEEPEST or is_leaf(value):
        yield path, value
        return
    for key, item in value.items():
        yield from leaves(item, is_leaf, path=(*path, str(key)))


def words(key: object) -> str:
    """A key as a reader says it."""
    text = str(key)
    return "held-out" + text[8:].replace("_", " ") if text.startswith("held_out") else text.replace("_", " ")


def label(path: Keys) -> str:
    """Keys that are the names of models, splits and metrics, as one name."""
    return " ".join(words(key) if key in SPLITS else key for key in path)


def short(reference: object) -> str:
    """The last part of a reference: names of runs are told apart by it."""
    return Path(str(reference)).name or str(reference)


def told_apart(references: Sequence[str]) -> list[str]:
    """References by their last parts where those differ and all lie in one folder, else as they are."""
    names = [short(reference) for reference in references]
    folders = {reference.rpartition("/")[0] for reference in references}
    return names if len(folders) == 1 and len(set(names)) == len(names) else list(references)


def direction(metric: str, recipe: JsonView) -> Direction | None:
    """Which way a metric is better, by its name unless the recipe says; None where neither does."""
    asked = recipe.get("direction")
    if asked in ("min", "max") and (recipe.get("metric") or "score") == metric:
        return cast(Direction, asked)
    return known_direction(metric)
