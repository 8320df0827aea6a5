"""`expect:` conditions on results: `test.top1 >= 0.9`, `held_out.top1 > sweep:best.held_out.top1 - 0.01`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from soupkit.errors import RecipeError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
PATH = re.compile(r"(?:(?P<step>[A-Za-z0-9_-]+):)?(?P<keys>[A-Za-z_][\w./@-]*)")
FORM = "expected PATH OPERATOR NUMBER, or PATH OPERATOR PATH with + NUMBER or - NUMBER after it"


@dataclass(frozen=True)
class Path:
    """A place in a step's result: keys and list positions with dots between; step None: the condition's own step."""

    step: str | None
    keys: str

    def look_up(self, results: Mapping[str, Any], *, own: str) -> float:
        """The number there. Raises LookupError, with what is there instead, when there is none.

        A metric node counts as its `value`; `test.top1` is found in a manifest's `metrics` too.
        """
        node: Any = results[self.step or own]
        metrics = node.get("metrics") if isinstance(node, Mapping) else None
        if isinstance(metrics, Mapping) and self.keys.split(".")[0] in metrics:
            node = metrics
        for key in self.keys.split("."):
            node = _child(node, key)
        if isinstance(node, Mapping) and "value" in node:
            node = node["value"]
        if isinstance(node, bool) or not isinstance(node, int | float):
            raise LookupError(f"{self} is {_shown(node)}, not a number")
        return float(node)

    def __str__(self) -> str:
        return f"{self.step}:{self.keys}" if self.step else self.keys


@dataclass(frozen=True)
class Condition:
    """left OPERATOR right + offset."""

    text: str
    left: Path
    operator: str
    right: Path | float
    offset: float = 0.0

    def steps(self) -> list[str]:
        """The other steps that it speaks of."""
        return [path.step for path in (self.left, self.right) if isinstance(path, Path) and path.step]

    def failure(self, results: Mapping[str, Any], *, own: str) -> str | None:
        """None when it holds of the results (step → result); otherwise what was seen."""
        try:
            left = self.left.look_up(results, own=own)
            right = self.right if isinstance(self.right, float) else self.right.look_up(results, own=own)
        except LookupError as error:
            return str(error.args[0])
        if OPERATORS[self.operator](left, right + self.offset):
            return None
        seen = f"{self.left} is {left:.6g}"
        return seen if isinstance(self.right, float) else f"{seen}, {self.right} is {right:.6g}"


def parse_condition(text: Any, *, where: str) -> Condition:
    """Read one condition. Raises RecipeError for anything that is not of the form."""
    words = text.split() if isinstance(text, str) else []
    left = _path(words[0]) if words else None
    if left is None or len(words) not in (3, 5) or words[1] not in OPERATORS:
        raise RecipeError(f"{where}: expect {text!r}: {FORM}", hint="put spaces around the operators")
    number = _number(words[2])
    right = _path(words[2]) if number is None else number
    offset = 0.0 if len(words) == 3 else _number(words[4])
    if right is None or offset is None or (len(words) == 5 and (words[3] not in "+-" or number is not None)):
        raise RecipeError(f"{where}: expect {text!r}: {FORM}")
    return Condition(text, left, words[1], right, -offset if words[3:4] == ["-"] else offset)


def _path(word: str) -> Path | None:
    match = PATH.fullmatch(word)
    return Path(match["step"], match["keys"]) if match else None


def _number(word: str) -> float | None:
    try:
        return float(word) if word[0] in "+-.0123456789" else None
    except ValueError:
        return None


def _child(node: Any, key: str) -> Any:
    if isinstance(node, Mapping) and key in node:
        return node[key]
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    raise LookupError(f"there is no {key!r} (found: {_shown(node)})")


def _shown(node: Any) -> str:
    if isinstance(node, Mapping):
        return ", ".join(map(str, node)) or "nothing"
    return f"a list of {len(node)}" if isinstance(node, list) else repr(node)
