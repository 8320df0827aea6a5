"""Values from YAML or the command line → recipe, and back to JSON. No conversion loses anything without
saying so."""

from __future__ import annotations

import dataclasses
import difflib
import json
import keyword
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from soupkit.asked import Recipe
from soupkit.errors import RecipeError, brief
from soupkit.jsons import Json, JsonView

R = TypeVar("R", bound=Recipe)


def whole_number(text: str) -> int | None:
    """The number that up to 18 digits 0-9 write; None for any other text: `²` is a digit, and no number, to
    Python."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def parse_recipe(kind: type[R], values: JsonView, *, where: str = "") -> R:
    """Make a recipe of type `kind` from YAML values or strings; `where` opens the message of every error.

    Raises RecipeError for unknown and missing keys, values of the wrong type, and for what the recipe itself
    refuses.
    """
    place = f"{where}: " if where else ""
    values = {f"{name}_" if keyword.iskeyword(name) else name: value for name, value in values.items()}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    _check_known(values, fields, place=place)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise RecipeError(f"{place}{name} is missing", hint=f"{name}: {field.metadata['help']}")
    hints = field_types(kind)
    converted = {name: _field_value(name, value, hints[name], place=place) for name, value in values.items()}
    try:
        return kind(**converted)
    except RecipeError as error:
        raise RecipeError(f"{place}{error.message}", hint=error.hint) from None


def recipe_to_json(recipe: Recipe) -> Json:
    """Every field as JSON holds it: paths as strings, tuples as lists. `parse_recipe` takes it back."""
    return {field.name: _json_value(getattr(recipe, field.name)) for field in dataclasses.fields(recipe)}


def field_types(kind: type) -> Json:
    """The resolved type of every field of a recipe type."""
    return get_type_hints(kind)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely a misspelling of."""
    spelled = {other.replace("-", "_").lower(): other for other in known}
    found = difflib.get_close_matches(name.replace("-", "_").lower(), list(spelled), n=1, cutoff=0.6)
    return spelled[found[0]] if found else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest one, or all of them."""
    names = sorted(known)
    guess = nearest(name, names)
    return f"did you mean {guess!r}?" if guess else f"known: {', '.join(names) or 'none'}"


def convert(value: object, hint: object) -> object:
    """`value`, from YAML or a command line, as the type `hint`. Raises ValueError when it is not one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        inner = next(argument for argument in arguments if argument is not NoneType)
        return None if value is None else convert(value, inner)
    if origin is Literal:
        return _choice(value, arguments)
    if origin is tuple:
        return tuple(convert(item, arguments[0]) for item in _items(value, arguments[0]))
    return _SCALARS[hint](value)


def type_name(hint: object) -> str:
    """What a message calls the type: "an integer", "one of auto, cpu"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return next(type_name(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return {int: "integers", float: "numbers", str: "a list of strings", Path: "a list of paths"}[
            arguments[0]
        ]
    names: dict[object, str] = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        Path: "a path",
    }
    return names[hint]


def _check_known(values: JsonView, fields: Iterable[str], *, place: str) -> None:
    unknown = [key for key in values if key not in fields]
    if unknown:
        names = ", ".join(repr(key) for key in unknown)
        raise RecipeError(
            f"{place}unknown {'key' if len(unknown) == 1 else 'keys'} {names}",
            hint=suggestion(str(unknown[0]), fields),
        )


def _field_value(name: str, value: object, hint: object, *, place: str) -> object:
    try:
        return convert(value, hint)
    except (ValueError, OverflowError):
        shown = "null" if value is None else brief(value)
        raise RecipeError(
            f"{place}{name} is {shown}, expected {type_name(hint)}", hint=_value_hint(name, value, hint)
        ) from None


def _value_hint(name: str, value: object, hint: object) -> str | None:
    if get_origin(hint) is Literal and isinstance(value, str):
        guess = nearest(value, map(str, get_args(hint)))
        return f"did you mean {guess!r}?" if guess else None
    if get_origin(hint) is tuple and isinstance(value, str):
        return f"write a list: {name}: [{value}]"
    return None


def _choice(value: object, choices: tuple[object, ...]) -> object:
    """The choice that `value` is; `True` is not the choice 1."""
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
        if isinstance(value, str) and not isinstance(choice, str) and value == str(choice):
            return choice
    raise ValueError(value)


def _items(value: object, inner: object) -> Iterable[object]:
    """The items of a list, of a lone number, or of a string with commas between numbers."""
    if isinstance(value, list | tuple):
        return value
    if (
        inner is str
        and isinstance(value, Mapping)
        and all(isinstance(item, Mapping) for item in value.values())
    ):
        # `set: {PATTERN: {option: VALUE}}`, which the command line takes as --set 'PATTERN: {option: VALUE}',
        # repeated
        return [json.dumps({key: item}) for key, item in value.items()]
    if inner in (int, float):
        if isinstance(value, str):
            return [item.strip() for item in value.split(",")] if value.strip() else []
        if isinstance(value, int | float):
            return [value]
    raise ValueError(value)


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError(value)


def _int(value: object) -> int:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return int(value)
    raise ValueError(value)


def _float(value: object) -> float:
    """A string is read as well: YAML 1.1 takes 1e-3, without a point, for one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or math.isnan(float(value)):
        raise ValueError(value)
    return float(value)


def _str(value: object) -> str:
    """A number is taken too: `lr: 0.01` where `lr: log(1e-4,1e-2)` would stand as well.

    A zero character is refused: no command line can hold one, and no path that a string may name.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float) or "\0" in str(value):
        raise ValueError(value)
    return str(value)


def _path(value: object) -> Path:
    """A home directory is expanded, since no shell has seen what comes from YAML."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError(value)
    os.fsencode(value)  # raises for what no file system can be asked for
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(value) from None


def _json_value(value: object) -> object:
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


_SCALARS: dict[object, Callable[[object], object]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    Path: _path,
}
