"""Values → recipe: what is taken, what is refused, and that nothing changes on the way."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from soupkit.commands import COMMANDS
from soupkit.errors import RecipeError
from soupkit.recipe.fields import argument, option
from soupkit.recipe.merge import MergeUniform, MergeWeighted
from soupkit.recipe.parse import convert, parse_recipe, recipe_to_json


@dataclass(frozen=True, kw_only=True)
class Everything:
    """One field of every type."""

    refs: tuple[str, ...] = argument(help="checkpoints")
    name: str = option("x", help="a string")
    count: int = option(1, help="an integer")
    rate: float = option(0.5, help="a number")
    flag: bool = option(False, help="a flag")
    out: Path = option(Path("out"), help="a path")
    kind: Literal["mean", "median"] = option("mean", help="a choice")
    limit: int | None = option(None, help="an integer or nothing")
    points: tuple[float, ...] = option((), help="numbers")
    sizes: tuple[int, ...] = option((), help="integers")

    def __post_init__(self) -> None:
        if self.count < 0:
            raise RecipeError(f"count is {self.count}, expected at least 0", hint="count up")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("a", str, "a"),
        (3, str, "3"),
        (0.1, str, "0.1"),
        (3, int, 3),
        ("3", int, 3),
        ("-3", int, -3),
        (3, float, 3.0),
        ("1e-3", float, 0.001),
        ("inf", float, float("inf")),
        (True, bool, True),
        ("false", bool, False),
        ("a/b", Path, Path("a/b")),
        ("~/a", Path, Path.home() / "a"),
        (None, int | None, None),
        ("3", int | None, 3),
        ("mean", Literal["mean", "median"], "mean"),
        ("2", Literal[1, 2], 2),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        ("0, 0.5,1", tuple[float, ...], (0.0, 0.5, 1.0)),
        ([0, "1e-1"], tuple[float, ...], (0.0, 0.1)),
        (0.5, tuple[float, ...], (0.5,)),
        ("1,2", tuple[int, ...], (1, 2)),
        ("", tuple[int, ...], ()),
    ],
)
def test_takes(value: Any, hint: Any, expected: Any) -> None:
    converted = convert(value, hint)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1.0, int),
        (True, int),
        ("1.5", int),
        ("ten", int),
        (None, int),
        (True, float),
        ("nan", float),
        (float("nan"), float),
        ("fast", float),
        (10**400, float),
        (1, bool),
        ("yes", bool),
        (True, str),
        (None, str),
        (["a"], str),
        ("", Path),
        (1, Path),
        ("mode", Literal["mean", "median"]),
        (True, Literal[1, 2]),
        ("a", tuple[str, ...]),
        ([1.5], tuple[int, ...]),
        ("1;2", tuple[float, ...]),
        (True, tuple[float, ...]),
        ({"a": 1}, tuple[str, ...]),
        ([None], tuple[str, ...]),
    ],
)
def test_refuses(value: Any, hint: Any) -> None:
    with pytest.raises((ValueError, OverflowError)):
        convert(value, hint)


def refusal(values: dict[str, Any], where: str = "") -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(Everything, values, where=where)
    return caught.value


def test_messages_name_place_key_value_and_expectation() -> None:
    error = refusal({"refs": ["a"], "count": 1.5}, "demo.yaml: step soup")
    assert error.message == "demo.yaml: step soup: count is 1.5, expected an integer"
    assert error.exit_code == 2
    assert refusal({"refs": ["a"], "limit": "x"}).message == "limit is 'x', expected an integer"
    assert refusal({"refs": ["a"], "count": None}).message == "count is null, expected an integer"
    assert (
        refusal({"refs": ["a"], "kind": "medain"}).message == "kind is 'medain', expected one of mean, median"
    )
    assert refusal({"refs": ["a"], "kind": "medain"}).hint == "did you mean 'median'?"
    assert refusal({"refs": "a"}).hint == "write a list: refs: [a]"


def test_unknown_and_missing_keys() -> None:
    assert refusal({"refs": ["a"], "cuont": 1}).message == "unknown key 'cuont'"
    assert refusal({"refs": ["a"], "cuont": 1}).hint == "did you mean 'count'?"
    assert "known: count, flag" in (refusal({"refs": ["a"], "zzz": 1}).hint or "")
    assert refusal({}).message == "refs is missing"
    assert refusal({}).hint == "refs: checkpoints"


def test_what_the_recipe_refuses_gets_the_place_too() -> None:
    error = refusal({"refs": [], "count": "-1"}, "f.yaml")
    assert (error.message, error.hint) == ("f.yaml: count is -1, expected at least 0", "count up")


def test_dashes_are_not_keys_but_are_understood() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(MergeUniform, {"refs": ["a"], "out": "b", "max-shard-size": "1GB"})
    assert caught.value.hint == "did you mean 'max_shard_size'?"


def test_round_trip_through_json() -> None:
    recipe = parse_recipe(
        Everything,
        {"refs": ["a", "b"], "out": "x/y", "points": "0,0.1", "limit": 3, "rate": 0.1 + 0.2, "flag": True},
    )
    values = json.loads(json.dumps(recipe_to_json(recipe)))
    assert set(values) == {field.name for field in dataclasses.fields(Everything)}
    assert parse_recipe(Everything, values) == recipe


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_round_trips_and_its_defaults_have_their_types(name: str) -> None:
    kind = COMMANDS[name].recipe_type()
    required = {"refs": ["a", "b"], "coefficients": [0.5, 0.5], "task": 0, "t": 0.5}
    required |= {"statistics": ["a", "b"], "to": "timm", "layers": ["a"], "sigma_rel": 0.1, "at": 0.5}
    fields = [field.name for field in dataclasses.fields(kind)]
    missing = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    values = {name: required.get(name, "a") for name in missing}
    values |= {name: text for name, text in {"model": "timm:x", "data": "digits"}.items() if name in fields}
    recipe = parse_recipe(kind, values)
    assert parse_recipe(kind, recipe_to_json(recipe)) == recipe


def test_a_weighted_recipe_reads_the_same_from_yaml_and_from_the_command_line() -> None:
    from_yaml = parse_recipe(MergeWeighted, {"refs": ["a"], "out": "o", "coefficients": [0.5, 1]})
    from_line = parse_recipe(MergeWeighted, {"refs": ["a"], "out": "o", "coefficients": "0.5,1"})
    assert from_yaml == from_line
