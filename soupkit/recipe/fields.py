"""How a recipe declares its options: `option(...)` and `argument(...)` are dataclass fields with help and
limits."""

from __future__ import annotations

import dataclasses
from math import inf
from typing import Any

from soupkit.asked import Recipe
from soupkit.errors import RecipeError

REQUIRED: Any = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Limits:
    """Numbers from low to high, low itself unless `above`; divides: they divide by their sum, so that is not
    zero."""

    low: float = -inf
    high: float = inf
    above: bool = False
    divides: bool = False

    def check(self, name: str, value: float) -> None:
        """Raise RecipeError for a value out of range."""
        if not self.low <= value <= self.high or (self.above and value == self.low):
            expected = f"{'more than' if self.above else 'at least'} {self.low:g}"
            if self.high < inf:
                expected = f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"
            raise RecipeError(f"{name} is {value:g}, expected {expected}")


def option(default: object = REQUIRED, *, help: str, **limits: Any) -> Any:
    """A keyword option: `--the-name VALUE` on the command line, `the_name:` in YAML. limits: those of
    `Limits`."""
    metadata = {"help": help, "positional": False, "limits": Limits(**limits)}
    return dataclasses.field(default=default, metadata=metadata)


def check_limits(recipe: Recipe) -> None:
    """Raise RecipeError for a number that its option does not take."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        for number in value if isinstance(value, tuple) else [value]:
            if isinstance(number, int | float):
                field.metadata["limits"].check(field.name, number)


def argument(default: object = REQUIRED, *, help: str) -> Any:
    """A positional argument on the command line, an ordinary key in YAML."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": True})
