"""The order of checkpoints by their names: numbers count as numbers, so that step-900 comes before
step-1000."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

Key = tuple[tuple[str | Fraction, ...], str]
_NUMBER = re.compile(
    # a version or a date: each part counts by itself
    r"(?P<parts>[0-9]+(?:\.[0-9]+){2,}|(?<=[vV])[0-9]+\.[0-9]+)"
    r"|(?P<number>(?:(?<![A-Za-z0-9)\]])-)?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3}(?![A-Za-z0-9]))?)"
    r"(?P<unit>[kKmMbB](?![A-Za-z0-9]))?"
)
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "": 1}


def natural_key(name: str) -> Key:
    """A key that sorts names as people count: epoch-2, epoch-10; 0.25, 0.5; 9e4, 1e5; 900k, 1M; x=-1, x=0;
    v1.9, v1.10.

    A minus is a sign only where no letter, digit or closing bracket stands before it. Equal numbers go by
    their text.
    """
    parts: list[str | Fraction] = []
    end = 0
    for found in _NUMBER.finditer(name):
        parts.append(name[end : found.start()])
        parts += _between_dots(found["parts"]) if found["parts"] else [_value(found)]
        end = found.end()
    return (*parts, name[end:]), name


def naturally(names: Iterable[str]) -> list[str]:
    """Names in natural order."""
    return sorted(names, key=natural_key)


def last_number(name: str) -> Fraction | None:
    """The last number in a name: 90 of epoch=9-step=90, 0.5 of alpha-0.5. None when there is none."""
    numbers = [part for part in natural_key(name)[0] if isinstance(part, Fraction)]
    return numbers[-1] if numbers else None


def without_number(names: Sequence[str]) -> list[str]:
    """The names that have no number of their own while others have one: their place in an order is not known.

    What all names begin with, up to a slash, is nobody's own.
    """
    shared = shared_folder(names)
    bare = [name for name in names if last_number(name[len(shared) :]) is None]
    return bare if len(bare) < len(names) else []


def shared_folder(names: Sequence[str]) -> str:
    """The folders that all names begin with, which say nothing of their order."""
    if len(names) < 2:
        return ""
    low, high = min(names), max(names)
    same = next((at for at, (x, y) in enumerate(zip(low, high, strict=False)) if x != y), len(low))
    return low[: low[:same].rfind("/") + 1]


def _value(found: re.Match[str]) -> Fraction:
    return Fraction(found["number"]) * _UNITS[(found["unit"] or "").lower()]


def _between_dots(text: str) -> list[str | Fraction]:
    parts: list[str | Fraction] = []
    for number in text.split("."):
        parts += [Fraction(number), "."]
    return parts[:-1]
