"""`expect:` conditions on results: `test.top1 >= 0.9`, `held_out.top1 > sweep:run-000.held_out.top1 - 0.01`.

A key may hold dots, as names of folders do: `runs/v1.5.held_out.top1`. One with spaces or other signs stands
in quotes: `'runs/second try'.held_out.top1`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from soupkit.errors import RecipeError, brief
from soupkit.jsons import JsonView
from soupkit.recipe.parse import whole_number

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
KEY = r"""(?:"[^"]*"|'[^']*'|[\w/@~+=,%-]*)"""
PATH = re.compile(rf"(?:(?P<step>[A-Za-z0-9_-]+):)?(?P<keys>(?![+-]){KEY}(?:\.{KEY})*)")
WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+""")
FORM = "expected PATH OPERATOR NUMBER, or PATH OPERATOR PATH with + NUMBER or - NUMBER after it"


@dataclass(frozen=True)
class Path:
    """A place in a step's result: keys and list positions, which dots separate; step None: the condition's
    own step.

    Where a key holds dots, the longest that is there counts.
    """

    step: str | None
    text: str
    keys: tuple[str, ...]

    def look_up(self, results: JsonView, *, own: str) -> float:
        """The number there. Raises LookupError, with what is there instead, when there is none.

        A metric node counts as its `value`; `test.top1` is found in a manifest's `metrics` too, and so are
        the metrics of one checkpoint under its reference, as those of several are.
        """
        result = results[self.step or own]
        node = _first_of([_found(place, self.keys) for place in _places(result)])
        if isinstance(node, Mapping) and "value" in node:
            node = node["value"]
        if isinstance(node, bool) or not isinstance(node, int | float):
            raise LookupError(f"{self} is {_shown(node)}, not a number")
        try:
            return float(node)
        except OverflowError:
            raise LookupError(f"{self} is {brief(node)}, too large for a number") from None

    def __str__(self) -> str:
        return f"{self.step}:{self.text}" if self.step else self.text


@dataclass(frozen=True)
class Condition:
    """left OPERATOR right + offset."""

    text: str
    left: Path
    operator: str
    right: Path | float
    offset: float = 0.0

    def paths(self) -> list[Path]:
        """The places that it speaks of."""
        return [path for path in (self.left, self.right) if isinstance(path, Path)]

    def unfounded(self, results: JsonView, *, own: str) -> str | None:
        """What is there instead, when one of its places holds no number: then it can be neither met nor
        unmet."""
        try:
            for path in self.paths():
                path.look_up(results, own=own)
        except LookupError as error:
            return str(error.args[0])
        return None

    def failure(self, results: JsonView, *, own: str) -> str | None:
        """None when it holds of the results (step → result); otherwise what was seen."""
        if unfounded := self.unfounded(results, own=own):
            return unfounded
        left = self.left.look_up(results, own=own)
        right = self.right if isinstance(self.right, float) else self.right.look_up(results, own=own)
        if OPERATORS[self.operator](left, right + self.offset):
            return None
        seen = f"{self.left} is {left:.6g}"
        return seen if isinstance(self.right, float) else f"{seen}, {self.right} is {right:.6g}"


def parse_condition(text: object, *, where: str) -> Condition:
    """Read one condition. Raises RecipeError for anything that is not of the form."""
    given = text if isinstance(text, str) else ""
    words = WORD.findall(given) if WORD.sub("", given).isspace() else []
    left = _path(words[0]) if words else None
    if left is None or len(words) not in (3, 5) or words[1] not in OPERATORS:
        raise RecipeError(f"{where}: expect {text!r}: {FORM}", hint="put spaces around the operators")
    number = _number(words[2])
    right = _path(words[2]) if number is None else number
    offset = 0.0 if len(words) == 3 else _number(words[4])
    if right is None or offset is None or (len(words) == 5 and (words[3] not in "+-" or number is not None)):
        raise RecipeError(f"{where}: expect {text!r}: {FORM}")
    return Condition(given, left, words[1], right, -offset if words[3:4] == ["-"] else offset)


def _path(word: str) -> Path | None:
    match = PATH.fullmatch(word) if _number(word) is None else None
    if match is None or not match["keys"]:
        return None
    keys = tuple(
        key[1:-1] if key[:1] in ("'", '"') else key for key in re.findall(rf"(?:^|\.)({KEY})", match["keys"])
    )
    return Path(match["step"], match["keys"], keys)


def _number(word: str) -> float | None:
    try:
        return float(word) if word[0] in "+-.0123456789" else None
    except ValueError:
        return None


@dataclass(frozen=True)
class _Miss:
    """Nothing is there: how many keys were left when that was seen, and what is there instead."""

    left: int
    why: str


def _places(result: object) -> list[object]:
    """Where keys may begin: in the metrics, in the metrics under the only checkpoint's reference, in the
    result."""
    if not isinstance(result, Mapping) or not isinstance(metrics := result.get("metrics"), Mapping):
        return [result]
    inputs = list(result.get("inputs") or [])
    named = (
        [{inputs[0].get("reference"): metrics}] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else []
    )
    return [metrics, *named, result]


def _found(node: object, keys: tuple[str, ...]) -> object:
    """What is at `keys`, or a _Miss: keys are joined by dots as long as that names something."""
    if not keys:
        return node
    misses = [_Miss(len(keys), f"there is no {keys[0]!r} (found: {_shown(node)})")]
    for num in range(len(keys), 0, -1):
        key = ".".join(keys[:num])
        if isinstance(node, Mapping) and key in node:
            inner = node[key]
        elif isinstance(node, list) and (place := whole_number(key)) is not None and place < len(node):
            inner = node[place]
        else:
            continue
        found = _found(inner, keys[num:])
        if not isinstance(found, _Miss):
            return found
        misses.append(found)
    return min(misses, key=lambda miss: miss.left)


def _first_of(found: Sequence[object]) -> object:
    """The first that is there. Raises LookupError with the reason of the one that came nearest."""
    misses = []
    for node in found:
        if not isinstance(node, _Miss):
            return node
        misses.append(node)
    raise LookupError(min(reversed(misses), key=lambda miss: miss.left).why)


def _shown(node: object) -> str:
    if isinstance(node, Mapping):
        return ", ".join(map(str, node)) or "nothing"
    return f"a list of {len(node)}" if isinstance(node, list) else repr(node)
