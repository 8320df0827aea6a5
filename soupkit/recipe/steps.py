"""Recipe files: YAML with one command or several steps, variables, and expectations. All of it is checked up
front.

    description: Fine-tune, then average.
    variables: {out: runs/example, seed: 0}
    steps:
      sweep: {command: finetune-sweep, base: runs/base, data: digits, seed: "${seed}", out: "${out}/sweep"}
      soup:
        command: merge uniform
        refs: ["${out}/sweep"]
        out: ${out}/uniform
        expect: [held_out.top1 >= 0.9, "held_out.top1 > sweep:held_out.top1 - 0.01"]

A file with one command has `command:` and its options in place of `steps:`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from soupkit.asked import Recipe, Results
from soupkit.commands import COMMANDS
from soupkit.errors import RecipeError, UnfoundedError, brief
from soupkit.jsons import Json, JsonView
from soupkit.recipe.expect import Condition, parse_condition
from soupkit.recipe.parse import parse_recipe, suggestion
from soupkit.recipe.results import missing, shape_of

FAULTS = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What PyYAML raises: its own errors, and those of Python for scalars such as `!!int ''` or the 99th of a
month."""
MOST_DEPTH = 100
MOST_VALUES = 100_000
MOST_CHARACTERS = 1_000_000
"""Of all strings of a recipe file together, once its variables stand in them."""
FILE_KEYS = ("description", "variables", "steps")
STEP_NAME = re.compile(r"[A-Za-z0-9_-]+")
VARIABLE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Step:
    """One command of a recipe file: its parsed recipe, and what its result must fulfil."""

    name: str
    command: str
    recipe: Recipe
    expect: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Steps:
    """A whole recipe file, checked."""

    description: str
    steps: tuple[Step, ...]


def load_steps(path: Path, settings: Sequence[str] = ()) -> Steps:
    """Read a recipe file and check every step; `settings` are "variable=value" or "step.key=value".

    Raises RecipeError for a file that cannot be read, unknown names at any level, wrong types, and bad
    expectations.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    return parse_steps(text, settings, where=str(path), name=path.stem)


def parse_steps(text: str, settings: Sequence[str] = (), *, where: str, name: str = "main") -> Steps:
    """As load_steps, from the text of a file; `name` is the step's name in a file with one command."""
    values = load_yaml(text, where=where)
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: holds no keys", hint="a recipe has `command:` and options, or `steps:`")
    variables, steps = _sections(values, where=where, name=name)
    for setting in settings:
        _apply(setting, variables, steps, single="command" in values)
    variables = _resolve(variables, where=where)
    parsed = tuple(
        _parse_step(key, step, variables, where=f"{where}: step {key}") for key, step in steps.items()
    )
    _check_references(parsed, where=where)
    return Steps(str(values.get("description", "")), parsed)


def load_yaml(text: str, *, where: str) -> object:
    """Parse YAML: only true and false are booleans, 1e-3 is a number, no key may stand twice. Raises
    RecipeError."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except FAULTS as error:
        raise RecipeError(f"{where}: is not valid YAML: {error or type(error).__name__}") from error
    _check_finite(value, where=where)
    return value


def _check_finite(value: object, *, where: str) -> None:
    """YAML's anchors can make a value that holds itself, or one that is endless once it is written out."""
    todo, count = [value], 0
    while todo:
        item = todo.pop()
        inner = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        count += len(inner)
        if count > MOST_VALUES:
            raise RecipeError(
                f"{where}: holds more than {MOST_VALUES} values", hint="does an anchor refer to itself?"
            )
        todo.extend(inner)


def _sections(values: Mapping[Any, Any], *, where: str, name: str) -> tuple[Json, dict[str, Json]]:
    """The variables and the raw steps of a file."""
    variables = _mapping(values.get("variables"), where=f"{where}: variables")
    if "command" in values:
        step = {key: value for key, value in values.items() if key not in FILE_KEYS}
        if "steps" in values:
            raise RecipeError(
                f"{where}: has both `command:` and `steps:`", hint="put the command into a step"
            )
        return variables, {name: step}
    for key in values:
        if key not in FILE_KEYS:
            raise RecipeError(
                f"{where}: unknown key {key!r}", hint=suggestion(str(key), [*FILE_KEYS, "command"])
            )
    steps = _mapping(values.get("steps"), where=f"{where}: steps")
    if not steps:
        raise RecipeError(f"{where}: has neither `command:` nor `steps:`")
    for key in steps:
        if not STEP_NAME.fullmatch(key):
            raise RecipeError(f"{where}: step name {key!r}: expected letters, digits, - and _")
    return variables, {key: _mapping(step, where=f"{where}: step {key}") for key, step in steps.items()}


def _mapping(value: object, *, where: str) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{where}: expected `name: value` pairs, got {value!r}")
    return dict(value)


def _apply(setting: str, variables: Json, steps: dict[str, Json], *, single: bool) -> None:
    """Put one --set into the variables or into a step."""
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise RecipeError(f"--set {setting}: expected variable=value or step.key=value")
    value = load_yaml(text, where=f"--set {setting}")
    step, dot, key = name.partition(".")
    if name in variables:
        variables[name] = value
    elif dot and step in steps:
        steps[step][key] = value
    elif single and not dot:
        next(iter(steps.values()))[name] = value
    else:
        known = steps if dot else variables
        raise RecipeError(
            f"--set {setting}: there is no {'step' if dot else 'variable'} {step!r}",
            hint=suggestion(step, known),
        )


def _resolve(variables: JsonView, *, where: str) -> Json:
    """Variables may use those above them."""
    resolved: Json = {}
    for name, value in variables.items():
        resolved[name] = _substitute(value, resolved, where=f"{where}: variable {name}")
        _check_size(resolved[name], where=f"{where}: variable {name}")
    return resolved


def _check_size(value: object, *, where: str) -> None:
    """Lists in lists, or texts in texts, that variables repeat grow tenfold with each line of a file."""
    todo, num_values, num_characters = [value], 0, 0
    while todo:
        item = todo.pop()
        inner = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        num_values += 1
        num_characters += len(item) if isinstance(item, str) else 0
        if num_values + len(inner) > MOST_VALUES or num_characters > MOST_CHARACTERS:
            raise _too_large(where)
        todo.extend(inner)


def _substitute(value: object, variables: JsonView, *, where: str) -> Any:
    """Replace ${name} in strings, at any depth; a string that is one ${name} takes the variable's type."""
    if isinstance(value, list):
        return [_substitute(item, variables, where=where) for item in value]
    if isinstance(value, dict):
        return {key: _substitute(item, variables, where=where) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    for name in VARIABLE.findall(value):
        if name not in variables:
            raise RecipeError(f"{where}: there is no variable {name!r}", hint=suggestion(name, variables))
    whole = VARIABLE.fullmatch(value)
    if whole:
        return variables[whole[1]]
    texts = {name: str(variables[name]) for name in VARIABLE.findall(value)}
    if sum(len(texts[name]) for name in VARIABLE.findall(value)) > MOST_CHARACTERS:
        raise _too_large(where)
    return VARIABLE.sub(lambda match: texts[match[1]], value)


def _too_large(where: str) -> RecipeError:
    return RecipeError(
        f"{where}: is too large once its variables are replaced, at most {MOST_CHARACTERS} characters "
        f"are read",
        hint="does a variable repeat another, which repeats another?",
    )


def _parse_step(name: str, values: JsonView, variables: JsonView, *, where: str) -> Step:
    options = _substitute(dict(values), variables, where=where)
    _check_size(options, where=where)
    command, expect = options.pop("command", None), options.pop("expect", None)
    if command is None:
        raise RecipeError(f"{where}: names no command", hint="command: merge uniform, for example")
    if not isinstance(command, str) or command not in COMMANDS or command == "run":
        runnable = [known for known in COMMANDS if known != "run"]
        raise RecipeError(
            f"{where}: unknown command {brief(command)}", hint=suggestion(str(command), runnable)
        )
    conditions = [] if expect is None else expect if isinstance(expect, list) else [expect]
    recipe = parse_recipe(COMMANDS[command].recipe_type(), options, where=where)
    return Step(name, command, recipe, tuple(parse_condition(text, where=where) for text in conditions))


def _check_references(steps: Sequence[Step], *, where: str) -> None:
    """An expectation may only speak of steps that exist; no step may write into another's directory."""
    for step in steps:
        for condition in step.expect:
            _check_condition(step, condition, {each.name: each for each in steps}, where=where)
    outs = [
        (step.name, Path(step.recipe.out))
        for step in steps
        if isinstance(step.recipe, Results) and step.recipe.out
    ]
    for position, (name, out) in enumerate(outs):
        for other, path in outs[:position]:
            if out.is_relative_to(path) or path.is_relative_to(out):
                raise RecipeError(
                    f"{where}: steps {other} and {name} both write "
                    f"{path if out.is_relative_to(path) else out}",
                    hint="give every step an `out` of its own",
                )


def _check_condition(step: Step, condition: Condition, steps: Mapping[str, Step], *, where: str) -> None:
    """The steps must exist, and what is expected of their results must be possible."""
    place = f"{where}: step {step.name}: expect {condition.text!r}"
    for path in condition.paths():
        name = path.step or step.name
        if name not in steps:
            raise UnfoundedError(f"{place}: there is no step {name!r}", hint=suggestion(name, steps))
        why = missing(shape_of(steps[name].command, steps[name].recipe), path.keys)
        if why:
            raise UnfoundedError(
                f"{place}: the result of {steps[name].command} cannot hold {path.text!r}: {why}",
                hint="of several checkpoints, name one: REFERENCE.held_out.top1"
                if steps[name].command == "evaluate"
                else None,
            )


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of scalars: `off`, `no`, 010 and 2024-01-01 are strings, and 1e-3 is a number."""

    def fetch_flow_collection_start(self, kind: object) -> None:
        """Refuse a thousand brackets in a row, on each of which PyYAML looks at all those before it."""
        if self.flow_level >= MOST_DEPTH:
            raise yaml.scanner.ScannerError(
                None, None, f"more than {MOST_DEPTH} nested brackets", self.get_mark()
            )
        super().fetch_flow_collection_start(kind)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        mapping = super().construct_mapping(node, deep=deep)
        seen: set[object] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {name!r} stands twice", key.start_mark
                )
            seen.add(name)
        return mapping


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?!0[0-9])(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"({_pattern})\Z"), list(_first))
