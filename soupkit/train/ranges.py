"""What a drawn hyper-parameter may be: a value, a range, or one of several under conditions.

1e-3                                              a value
log(1e-5,1e-3) uniform(0,0.1) int(4,16) choice(0,0.1,0.2)
log(1e-5,1e-3) if optimizer=adamw else log(1e-3,1e-1)
0 if cutmix>0 and epochs<8 else choice(0,0.2)
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from soupkit.errors import RecipeError

Value = int | float | str | None
Settings = dict[str, Value]

KINDS = ("log", "uniform", "int", "choice")
WHOLE = ("epochs", "rand_augment", "rand_augment_magnitude", "run_seed")
OPTIONAL = ("layer_decay", "run_seed")
WORDS = ("optimizer",)
DRAWN = (
    "lr",
    "weight_decay",
    "epochs",
    "mixup",
    "cutmix",
    "label_smoothing",
    "random_erasing",
    "rand_augment",
    "rand_augment_magnitude",
    "layer_decay",
    "optimizer",
    "run_seed",
)
FORMS = "a number, log(a,b), uniform(a,b), int(a,b) or choice(a,b,…), also … if optimizer=adamw else …"
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Draw:
    """What one hyper-parameter may be: two bounds of a range (log, uniform, int: both included) or a list of
    points."""

    kind: Literal["constant", "log", "uniform", "int", "choice"]
    values: tuple[Value, ...]

    def at(self, u: float) -> Value:
        """The value at u in [0, 1): the inverse of the distribution function."""
        if self.kind in ("constant", "choice"):
            return self.values[int(u * len(self.values))]
        low, high = (float(value) for value in self.values if value is not None)
        if self.kind == "int":
            return int(low) + int(u * (int(high) - int(low) + 1))
        if self.kind == "uniform":
            return min(low + u * (high - low), high)
        return min(max(math.exp(math.log(low) + u * (math.log(high) - math.log(low))), low), high)


@dataclass(frozen=True)
class Condition:
    """`name operator value`, asked of the other hyper-parameters of the same run."""

    name: str
    sign: str
    value: Value

    def holds(self, settings: Mapping[str, Value]) -> bool:
        """Whether it is so; what is none is neither less nor more than a number."""
        mine = settings[self.name]
        if self.sign not in ("=", "==", "!=") and (mine is None or self.value is None):
            return False
        return OPERATORS[self.sign](mine, self.value)


@dataclass(frozen=True)
class Branch:
    """A draw, and all the conditions under which it is taken."""

    draw: Draw
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Range:
    """The branches of one hyper-parameter: the first whose conditions hold is taken; the last has none."""

    branches: tuple[Branch, ...]

    def draw(self, settings: Mapping[str, Value]) -> Draw:
        """What it may be in a run with these other hyper-parameters."""
        return next(
            branch.draw for branch in self.branches if all(each.holds(settings) for each in branch.conditions)
        )

    @property
    def varies(self) -> bool:
        """Whether any branch leaves something to be drawn."""
        return any(branch.draw.kind != "constant" for branch in self.branches)

    @property
    def asks(self) -> set[str]:
        """The hyper-parameters that its conditions speak of."""
        return {condition.name for branch in self.branches for condition in branch.conditions}


def parse_range(text: str, name: str) -> Range:
    """Read the option `name`, conditions included. Raises RecipeError for what cannot be read."""
    *conditional, last = re.split(r"\s+else\s+", text)
    branches = []
    for part in conditional:
        draw, given, condition = part.partition(" if ")
        if not given:
            raise _wrong(name, text, f"{part!r} has no condition before its else")
        branches.append(Branch(parse_draw(draw, name), _conditions(condition, name, text)))
    if re.search(r"\sif\s", last):
        raise _wrong(name, text, "a condition needs an else")
    return Range((*branches, Branch(parse_draw(last, name))))


def parse_draw(text: str, name: str) -> Draw:
    """Read one range of the option `name`. Raises RecipeError for what is none, and for an empty or infinite
    one."""
    call = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text, re.DOTALL)
    if call is None:
        return Draw("constant", (_value(text, name, text),))
    kind, arguments = call.group(1), call.group(2).split(",")
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        raise _wrong(name, text, f"{kind} is no range" + (f"; did you mean {close[0]}?" if close else ""))
    values = tuple(_value(argument, name, text) for argument in arguments)
    if kind == "choice":
        return Draw("choice", values)
    return Draw(_checked_range(kind, values, name, text), values)


def in_order(ranges: Mapping[str, Range]) -> list[str]:
    """The names such that each comes after those that its conditions speak of, else as they stand.

    Raises RecipeError for conditions that go round in a circle.
    """
    order: list[str] = []
    waiting = list(ranges)
    while waiting:
        free = next((name for name in waiting if ranges[name].asks <= set(order)), None)
        if free is None:
            raise RecipeError(f"the conditions of {', '.join(waiting)} go round in a circle")
        order.append(free)
        waiting.remove(free)
    return order


def _conditions(text: str, name: str, where: str) -> tuple[Condition, ...]:
    return tuple(_condition(part, name, where) for part in re.split(r"\s+and\s+", text))


def _condition(text: str, name: str, where: str) -> Condition:
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|!=|==|=|<|>)\s*([\w.+-]+)\s*", text)
    if match is None:
        raise _wrong(name, where, f"{text!r} is no condition such as optimizer=adamw or epochs<8")
    other, sign, value = match.groups()
    if other not in DRAWN or other in (name, "run_seed"):
        close = difflib.get_close_matches(other, DRAWN, n=1)
        raise _wrong(
            name, where, f"{other!r} is nothing to ask for" + (f"; did you mean {close[0]}?" if close else "")
        )
    if other in WORDS and sign not in ("=", "==", "!="):
        raise _wrong(name, where, f"{other} is a word: ask with = or !=")
    return Condition(other, sign, _value(value, other, where))


def _value(text: str, name: str, where: str) -> Value:
    text = text.strip()
    if name in WORDS:
        if not re.fullmatch(r"[A-Za-z]\w*", text):
            raise _wrong(name, where, f"{text!r} is not a word")
        return text
    if text == "none":
        if name not in OPTIONAL:
            raise _wrong(name, where, "none is not a value of this option")
        return None
    try:
        number = float(text)
    except ValueError:
        raise _wrong(name, where, f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise _wrong(name, where, f"{text} is not finite")
    if name not in WHOLE:
        return number
    if number != int(number):
        raise _wrong(name, where, f"{text} is not a whole number")
    return int(number)


def _checked_range(
    kind: str, values: Sequence[Value], name: str, text: str
) -> Literal["log", "uniform", "int"]:
    if name in WORDS:
        raise _wrong(name, text, f"{kind} is for numbers, a word needs choice")
    low, high = values if len(values) == 2 else (None, None)
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        raise _wrong(name, text, f"{kind} takes two bounds, from,to")
    if low >= high:
        raise _wrong(name, text, "the lower bound comes first")
    if kind == "log" and low <= 0:
        raise _wrong(name, text, "log needs bounds above 0")
    if kind == "int" and (low != int(low) or high != int(high)):
        raise _wrong(name, text, "int needs whole bounds")
    if kind != "int" and name in WHOLE:
        raise RecipeError(
            f"{name} is {text!r}, but it is a whole number", hint=f"--{dashed(name)} 'int({low},{high})'"
        )
    return "log" if kind == "log" else "uniform" if kind == "uniform" else "int"


def dashed(name: str) -> str:
    """The option's name on the command line."""
    return name.replace("_", "-")


def _wrong(name: str, text: str, why: str) -> RecipeError:
    return RecipeError(f"{name} is {text!r}: {why}", hint=f"--{dashed(name)} takes {FORMS}")
