"""A recipe type as the command line shows it: its fields are the options, its docstring is the help.

Typer sees strings only (and flags): `soupkit.recipe.parse` converts, so that YAML and the command line agree.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer

from soupkit.asked import Recipe
from soupkit.errors import RecipeError
from soupkit.jsons import Json
from soupkit.recipe.parse import field_types

WIDEST_METAVAR = 12
_FIRST_SENTENCE = re.compile(r"(.*?(?:(?<!et al)[.](?=\s|$)|:$|\Z))(.*)", flags=re.DOTALL | re.MULTILINE)
_WRAPPED = re.compile(r"(?<!\n)\n(?!\n)")
"""Where a docstring goes on in the next line; a terminal has lines of its own length."""
_EXAMPLE = re.compile(r"^Example: (.+(?:\n(?!Example: ).+)*)", flags=re.MULTILINE)
_METAVARS: dict[object, str] = {bool: "", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


@dataclasses.dataclass(frozen=True)
class Description:
    """What a recipe's docstring says: one sentence, the rest, and commands to copy."""

    summary: str
    details: str
    examples: tuple[str, ...]


def describe(kind: type[Recipe]) -> Description:
    """Read the docstring of a recipe type: its first sentence, its paragraphs, its `Example:` paragraphs."""
    text = inspect.cleandoc(kind.__doc__ or "")
    summary, rest = _FIRST_SENTENCE.fullmatch(text).groups()  # type: ignore[union-attr]
    examples = tuple(" ".join(example.split()) for example in _EXAMPLE.findall(rest))
    details = _WRAPPED.sub(" ", _EXAMPLE.sub("", rest).strip())
    return Description(" ".join(summary.split()), details, examples)


def parameters(kind: type[Recipe], shown: Sequence[str] | None = None) -> Iterator[inspect.Parameter]:
    """The arguments and options of a recipe type, in the signature form that typer reads; help shows those
    that are `shown`, in that order, and hides the others."""
    hints = field_types(kind)
    panels = _panels(kind)
    own_first = [name for base in kind.__mro__ for name in inspect.get_annotations(base)]
    order = [*(shown or ()), *own_first]
    for field in sorted(dataclasses.fields(kind), key=lambda field: order.index(field.name)):
        make = _argument if field.metadata["positional"] else _option
        look: Json = {
            "rich_help_panel": panels[field.name] if shown is None else None,
            "hidden": shown is not None and field.name not in shown,
        }
        annotation, info = make(field, hints[field.name], look)
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=info
        )


def given(kind: type[Recipe], values: Json) -> Json:
    """The values that were given or have a default; typer passes lists of all that were given, None for the
    others.

    Raises RecipeError for an option that is given twice and takes one value: the last would count in silence.
    """
    hints, found = field_types(kind), {}
    for name, value in values.items():
        if not isinstance(value, list) or repeats(hints[name]):
            found[name] = value
        elif len(value) > 1:
            shown = " and ".join(map(repr, value))
            raise RecipeError(f"--{_dashed(name)} is given {len(value)} times: {shown}", hint="give it once")
        elif value:
            found[name] = value[0]
    return {name: value for name, value in found.items() if value is not None}


def refuse_contradictions(arguments: Sequence[str]) -> None:
    """Raise RecipeError for a switch that is given on and off: `--test --no-test`."""
    words = [word for word in arguments[: [*arguments, "--"].index("--")] if word.startswith("--")]
    for word in words:
        if word.startswith("--no-") and f"--{word[5:]}" in words:
            raise RecipeError(f"--{word[5:]} and {word} are given both", hint="give one of them")


def _dashed(name: str) -> str:
    return name.rstrip("_").replace("_", "-")  # lambda_: a word that Python keeps for itself


def escape(text: str) -> str:
    """Keep rich from reading `[key=value]` in a help text as markup."""
    return re.sub(r"(?=\[[a-z#/@])", r"\\", text)


def _panels(kind: type[Recipe]) -> dict[str, str | None]:
    """Field → heading in --help, from the mixin that declares it ("Batch norm options"); None for its own."""
    panels: dict[str, str | None] = {}
    for base in reversed(kind.__mro__):
        words = re.findall(r"[A-Z][a-z]*", base.__name__)
        for name in inspect.get_annotations(base):
            panels.setdefault(name, None if base is kind else " ".join(words).capitalize())
    return panels


def _argument(field: dataclasses.Field[Any], hint: object, look: Json) -> tuple[object, object]:
    metavar = field.name.removesuffix("s").upper() if get_origin(hint) is tuple else field.name.upper()
    annotation = list[str] if get_origin(hint) is tuple else str
    required = field.default is dataclasses.MISSING
    default = ... if required else _text(field.default)
    info = typer.Argument(default, metavar=metavar, help=escape(field.metadata["help"]), **look)
    return annotation if required else annotation | None, info


def _option(field: dataclasses.Field[Any], hint: object, look: Json) -> tuple[object, object]:
    name = _dashed(field.name)
    required = field.default is dataclasses.MISSING
    metavar, text = _metavar(hint), field.metadata["help"]
    if len(metavar) > WIDEST_METAVAR:
        metavar, text = "CHOICE", f"{text} ({metavar.replace('|', ', ')})"
    common: Json = {"help": escape(text), **look}
    if hint is bool:
        default = ... if required else field.default
        flag = (
            f"--{name}" if default is False else f"--{name}/--no-{name}"
        )  # what is off need not be turned off
        return bool, typer.Option(default, flag, metavar="", show_default=default is True, **common)
    default = ... if required else _text(field.default)
    shown = bool(default) and default is not ...
    several = [default] if isinstance(default, str) else default  # a list, to see when one is given twice
    info = typer.Option(several, f"--{name}", metavar=metavar, show_default=shown, **common)
    return list[str] if required else list[str] | None, info


def repeats(hint: object) -> bool:
    """Whether the option is given once per value (`--set a=1 --set b=2`); numbers take commas instead."""
    return get_origin(hint) is tuple and get_args(hint)[0] in (str, Path)


def _metavar(hint: object) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return next(_metavar(argument) for argument in arguments if argument is not NoneType)
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin is tuple:
        inner = _METAVARS[arguments[0]]
        return inner if repeats(hint) else f"{inner},…"
    return _METAVARS[hint]


def _text(default: object) -> object:
    """A default as it would be typed; the recipe converts it back."""
    if default is None or default == ():
        return None
    if isinstance(default, tuple):
        return list(default) if isinstance(default[0], str) else ",".join(map(str, default))
    return str(default)
