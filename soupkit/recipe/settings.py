"""Options per tensor: `--set 'layers.*.mlp: {weight: [0.2, 0.8]}'` and what they come to for one tensor.

A setting is a pattern and some parameters. The pattern matches whole parts of a tensor's dotted name,
anywhere in it; `*` stands for any text within one part. ` @3-5` after the pattern keeps it to layers 3 to 5,
` @before` and ` @after` to what stands before and after the layers; with a `?` after these, there need be no
such tensor. A value is a number; a list of numbers, which is spread over the layers of the model as a
gradient; or {ingredient: number or list}, by position from 0 or by reference. Later settings win.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from soupkit.errors import RecipeError, brief
from soupkit.recipe.parse import suggestion, whole_number
from soupkit.recipe.steps import load_yaml

Value = float | tuple[float, ...]
BEFORE = re.compile(
    r"(^|[._])(embed\w*|\w*embeddings?|wte|wpe|stem|conv1|cls_token|class_embedding|ln_pre)([._]|$)"
)
"""Names of what stands before the layers; anything else outside them stands after."""
Place = tuple[int, int] | Literal["before", "after"] | None
"""Layers from first to last, or what stands outside them; None: everywhere."""


@dataclass(frozen=True)
class Setting:
    """Values of one parameter for the tensors that a pattern matches, at a place; ingredient None: for every
    one.

    may_miss: it need not speak of any tensor.
    """

    pattern: re.Pattern[str]
    place: Place
    parameter: str
    value: Value
    ingredient: int | None = None
    may_miss: bool = False

    def matches(self, name: str) -> bool:
        """Whether it speaks of a tensor."""
        return _stands_at(name, self.place) and self.pattern.search(name) is not None


def _stands_at(name: str, place: Place) -> bool:
    if place is None:
        return True
    number = layer_of(name)[1]
    if isinstance(place, str):
        return number is None and bool(BEFORE.search(name)) is (place == "before")
    return number is not None and place[0] <= number <= place[1]


def parse_settings(
    texts: Iterable[str], *, known: Iterable[str], references: Sequence[str]
) -> tuple[Setting, ...]:
    """Read `PATTERN: {parameter: value}` texts. Raises RecipeError for unknown parameters, values and
    ingredients."""
    known = list(known)
    return tuple(setting for text in texts for setting in _parse(text, known, references))


def name_pattern(text: str) -> re.Pattern[str]:
    """`layers.*.mlp` → the names that hold these parts in a row."""
    inner = re.escape(text.strip(".")).replace(r"\*", r"[^.]*")
    return re.compile(rf"(?:^|\.){inner}(?=\.|$)" if text != "*" else "")


def _parse(text: str, known: Sequence[str], references: Sequence[str]) -> Iterable[Setting]:
    where = f"--set {text}"
    values = load_yaml(text if text.startswith("{") else _quoted(text), where=where)
    if not isinstance(values, dict) or not all(isinstance(inner, dict) for inner in values.values()):
        raise RecipeError(
            f"{where}: expected PATTERN: {{parameter: value}}", hint="--set 'layers.*.mlp: {weight: 0.5}'"
        )
    for text, parameters in values.items():
        pattern, place, may_miss = _split_place(str(text))
        for parameter, value in parameters.items():
            if parameter not in known:
                raise RecipeError(
                    f"{where}: unknown parameter {parameter!r}", hint=suggestion(str(parameter), known)
                )
            inner = value.items() if isinstance(value, dict) else [(None, value)]
            for ingredient, number in inner:
                position = None if ingredient is None else _position(ingredient, references, where=where)
                yield Setting(pattern, place, parameter, _value(number, where=where), position, may_miss)


def _split_place(text: str) -> tuple[re.Pattern[str], Place, bool]:
    match = re.fullmatch(r"(.*?) *@ *(?:(before|after)|([0-9]{1,18})(?:-([0-9]{1,18}))?)(\?)?", text)
    if not match:
        return name_pattern(text), None, False
    word, first, last = match[2], match[3], match[4]
    place = cast(Place, word) if word else (int(first), int(last or first))
    return name_pattern(match[1] or "*"), place, bool(match[5])


def _quoted(text: str) -> str:
    """`*: {weight: 1}` → `"*": {weight: 1}`, since YAML gives a meaning of its own to a star."""
    pattern, colon, rest = text.partition(":")
    return f"{json.dumps(pattern.strip(chr(34) + chr(39) + ' '))}: {rest}" if colon else text


def _position(ingredient: object, references: Sequence[str], *, where: str) -> int:
    position = whole_number(str(ingredient))
    if position is not None and position < len(references):
        return position
    found = [
        place for place, reference in enumerate(references) if reference.rstrip("/").endswith(str(ingredient))
    ]
    if len(found) != 1:
        raise RecipeError(
            f"{where}: {brief(ingredient)} names {len(found)} of the {len(references)} ingredients",
            hint=f"give a position from 0 to {len(references) - 1}, or the end of one reference",
        )
    return found[0]


def _value(value: object, *, where: str) -> Value:
    if isinstance(value, list) and value:
        return tuple(_number(item, where=where) for item in value)
    return _number(value, where=where)


def _number(value: object, *, where: str) -> float:
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float):
        raise RecipeError(
            f"{where}: {brief(value)} is not a number",
            hint="write a number, or a list of numbers for a gradient",
        )
    try:
        return float(value)
    except OverflowError:
        raise RecipeError(f"{where}: {brief(value)} is too large") from None


def check_matches(settings: Iterable[Setting], names: Iterable[str]) -> None:
    """Raise RecipeError for a setting that speaks of no tensor."""
    known = list(names)
    for setting in settings:
        if not setting.may_miss and not any(map(setting.matches, known)):
            raise RecipeError(
                f"set: {setting.pattern.pattern!r} matches no tensor", hint="soupkit inspect REF --tensors"
            )


@dataclass(frozen=True)
class Layers:
    """Where each tensor stands among the layers of its stack, from 0 (first) to 1 (last).

    A stack is what comes before the first number of a name: `model.layers.3.mlp.weight` is layer 3 of
    `model.layers`. Tensors outside every stack take the first value of a gradient.
    """

    last: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str]) -> Layers:
        """Count the layers of every stack."""
        last: dict[str, int] = {}
        for name in names:
            stack, number = layer_of(name)
            if number is not None:
                last[stack] = max(last.get(stack, 0), number)
        return cls(last)

    def depth(self, name: str) -> float:
        """0 for the first layer of the tensor's stack, 1 for the last; 0 outside. A stack of one layer is its
        last."""
        stack, number = layer_of(name)
        if number is None:
            return 0.0
        return number / self.last[stack] if self.last[stack] else 1.0


def layer_of(name: str) -> tuple[str, int | None]:
    """The stack and the layer number of a tensor: the first part of its name that is a number, and what
    precedes it."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if (number := whole_number(part)) is not None:
            return ".".join(parts[:place]), number
    return "", None


def at_depth(value: Value, depth: float) -> float:
    """A number, or the point of a gradient at a depth from 0 to 1 (linear between its values)."""
    if not isinstance(value, tuple):
        return value
    place = depth * (len(value) - 1)
    lower = min(int(place), len(value) - 1)
    upper = min(lower + 1, len(value) - 1)
    return (1 - (place - lower)) * value[lower] + (place - lower) * value[upper]


def resolve(
    name: str, defaults: Mapping[str, Sequence[float]], settings: Sequence[Setting], layers: Layers
) -> dict[str, list[float]]:
    """Every parameter's numbers for one tensor: the defaults (one per ingredient, or one) with the settings
    applied."""
    values = {parameter: list(numbers) for parameter, numbers in defaults.items()}
    depth = layers.depth(name)
    for setting in settings:
        if setting.matches(name):
            number = at_depth(setting.value, depth)
            numbers = values[setting.parameter]
            places = (
                range(len(numbers))
                if setting.ingredient is None or len(numbers) == 1
                else [setting.ingredient]
            )
            for place in places:
                numbers[place] = number
    return values
