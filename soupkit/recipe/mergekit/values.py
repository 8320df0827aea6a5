"""Values of a mergekit file, one kind after the other: read with mergekit's conversions, or refused by
name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.jsons import Json
from soupkit.recipe.parse import suggestion

Kind = Literal["number", "boolean", "integer"]
Scalar = bool | int | float | str
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,9})?", re.ASCII)
_TRUE, _FALSE = ("1", "on", "t", "true", "y", "yes"), ("0", "off", "f", "false", "n", "no")
_SHOWN = 60
MOST_FILTER = 200
"""Characters of a filter; no tensor has a longer name."""


@dataclass(frozen=True)
class Model:
    """A model of the file, and the adapter on it."""

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    @property
    def text(self) -> str:
        """As mergekit writes it: path@revision+adapter@revision."""
        adapter = f"+{_at(self.adapter, self.adapter_revision)}" if self.adapter is not None else ""
        return _at(self.path, self.revision) + adapter


@dataclass(frozen=True)
class Condition:
    """A number, or a gradient of several, for tensors whose names hold a text; filter None: for all that is
    left."""

    filter: str | None
    value: Scalar | tuple[Scalar, ...]


Setting = tuple[Condition, ...]
Parameters = Mapping[str, Setting]


def _at(path: str, revision: str | None) -> str:
    return path if revision is None else f"{path}@{revision}"


def shown(value: object) -> str:
    """A value as a message shows it: short, and in printable characters."""
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 64:
        return f"an integer of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def refuse(where: str, what: str, *, hint: str | None = None) -> RecipeError:
    """The error for a place in the file."""
    return RecipeError(f"{where}: {what}", hint=hint)


def mapping(
    value: object, known: Iterable[str] | None, where: str, *, what: str = "key: value pairs"
) -> Json:
    """Keys and values; with `known`, other keys are refused with the nearest one."""
    if not isinstance(value, dict):
        raise refuse(where, f"expected {what}, got {shown(value)}")
    names = None if known is None else list(known)
    for key in value:
        if not isinstance(key, str):
            raise refuse(where, f"the key {shown(key)} is not text")
        if names is not None and key not in names:
            raise refuse(
                where, f"soupkit does not know the key {shown(key)}", hint=suggestion(key[:_SHOWN], names)
            )
    return value


def items(value: object, where: str) -> list[object]:
    """A list with something in it."""
    if not isinstance(value, list) or not value:
        raise refuse(where, f"expected a list, got {shown(value)}")
    return value


def text(value: object, where: str) -> str:
    """Text with something in it, that can be printed."""
    if not isinstance(value, str) or not value.strip():
        raise refuse(where, f"expected text, got {shown(value)}", hint="write it in quotes if it is text")
    if not value.isprintable():
        raise refuse(where, f"{shown(value)} holds characters that cannot be printed")
    return value


def scalar(value: object, kind: Kind, where: str) -> float | bool | int:
    """A number, boolean or integer, with the conversions that mergekit makes (0.0 is false, '0.5' a
    number)."""
    found = {"number": _number, "boolean": _boolean, "integer": _integer}[kind](value)
    if found is None:
        wanted = {"number": "a finite number", "boolean": "true or false", "integer": "an integer"}[kind]
        raise refuse(where, f"expected {wanted}, got {shown(value)}")
    return found


def _number(value: object) -> float | int | None:
    if isinstance(value, str):
        value = float(value) if len(value) < 400 and _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool):
        return int(value)
    if not isinstance(value, int | float) or (isinstance(value, int) and abs(value) > 10**300):
        return None
    return value if math.isfinite(value) else None


def _boolean(value: object) -> bool | None:
    if isinstance(value, str):
        word = value.lower()
        return True if word in _TRUE else False if word in _FALSE else None
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _integer(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,18}", value.strip(), re.ASCII):
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def parameters(value: object, where: str) -> dict[str, Setting]:
    """{name: setting}; nothing where there are none."""
    found = {} if value is None else mapping(value, None, where)
    for name in found:
        if not name.isidentifier() or len(name) > _SHOWN:
            raise refuse(where, f"{shown(name)} is no parameter of mergekit's methods")
    return {name: setting(each, f"{where}.{name}") for name, each in found.items()}


def setting(value: object, where: str) -> Setting:
    """A scalar, a gradient, or conditions of which the first that fits counts."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return tuple(_condition(item, f"{where}[{place}]") for place, item in enumerate(value))
    return (Condition(None, _value(value, where)),)


def _condition(value: object, where: str) -> Condition:
    found = mapping(value, ("filter", "value"), where, what="filter and value")
    if "value" not in found:
        raise refuse(where, "has no value", hint="- {filter: mlp, value: 0.5}")
    pattern = found.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise refuse(
            f"{where}.filter", f"expected text, got {shown(pattern)}", hint="one condition for each filter"
        )
    if pattern in ("", "*"):
        pattern = None
    if pattern is not None and ("*" in pattern or not pattern.isprintable() or len(pattern) > MOST_FILTER):
        raise refuse(
            f"{where}.filter",
            f"{shown(pattern)} is in no tensor's name: mergekit looks for the text as it stands",
            hint="a part of the name such as mlp or self_attn.q_proj; no pattern",
        )
    return Condition(pattern, _value(found["value"], f"{where}.value"))


def _value(value: object, where: str) -> Scalar | tuple[Scalar, ...]:
    if isinstance(value, list) and value:
        return tuple(_scalar(item, f"{where}[{place}]") for place, item in enumerate(value))
    return _scalar(value, where)


def _scalar(value: object, where: str) -> Scalar:
    if not isinstance(value, bool | int | float | str):
        raise refuse(where, f"expected a number or a list of numbers, got {shown(value)}")
    return value


def model(value: object, where: str) -> Model:
    """`path@revision+adapter@revision`, or {model: {path, revision}, lora: {path, revision}}."""
    if isinstance(value, dict):
        if "model" not in value and "path" in value:
            raise refuse(where, "names no model", hint="{model: {path: PATH, revision: REVISION}}")
        found = mapping(value, ("model", "lora", "override_architecture"), where)
        if found.get("override_architecture") is not None:
            raise refuse(
                f"{where}.override_architecture", "soupkit merges tensors by name and knows no architectures"
            )
        if "model" not in found:
            raise refuse(
                where, "names no model", hint="{model: {path: PATH, revision: REVISION}, lora: {path: PATH}}"
            )
        lora = found.get("lora")
        below = _path(found["model"], f"{where}.model")
        return Model(*below, *((None, None) if lora is None else _path(lora, f"{where}.lora")))
    if not isinstance(value, str):
        raise refuse(where, f"the model {shown(value)}: expected its path or name")
    parts = text(value, where).split("+")
    if len(parts) > 2:
        raise refuse(
            where,
            f"the model {shown(value)}: more than one plus",
            hint="MODEL+ADAPTER; a path with a plus in it: {model: {path: PATH}}",
        )
    below, *adapters = (_path(part, where) for part in parts)
    return Model(*below, *(adapters[0] if adapters else (None, None)))


def _path(value: object, where: str) -> tuple[str, str | None]:
    if isinstance(value, dict):
        found = mapping(value, ("path", "revision"), where)
        if "path" not in found:
            raise refuse(where, "names no path", hint="{path: PATH, revision: REVISION}")
        revision = found.get("revision")
        return _name(found["path"], f"{where}.path"), None if revision is None else text(
            revision, f"{where}.revision"
        )
    path, at, revision = text(value, where).partition("@")
    if "@" in revision or (at and not revision):
        raise refuse(where, f"{shown(value)}: expected PATH or PATH@REVISION")
    return _name(path, where), revision if at else None


def _name(value: object, where: str) -> str:
    """A path or name of one model: no spaces around it, and no pattern, which soupkit would spell out."""
    name = text(value, where)
    if name != name.strip():
        raise refuse(where, f"{shown(name)} has spaces around it")
    if any(character in name for character in "*?[]{}"):
        raise refuse(where, f"{shown(name)} is a pattern, expected the name of one model")
    return name
