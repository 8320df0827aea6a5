"""Options per tensor: patterns, gradients, ingredients, precedence."""

from __future__ import annotations

from typing import Any

import pytest

from soupkit.errors import RecipeError
from soupkit.recipe.parse import parse_recipe
from soupkit.recipe.settings import Layers, at_depth, layer_of, name_pattern, parse_settings, resolve
from soupkit.recipe.task_vectors.ties import MergeTies

NAMES = [
    "embed.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("attn.q", "mlp.up")),
    "visual.blocks.0.mlp.fc1.weight",
    "visual.blocks.2.mlp.fc1.weight",
]
LAYERS = Layers.of(NAMES)
KNOWN = ["weight", "density", "lambda"]
DEFAULTS: dict[str, list[float]] = {"weight": [1.0, 2.0], "density": [0.5, 0.5], "lambda": [1.0]}


def values(name: str, *texts: str, references: Any = ("runs/a", "runs/b")) -> dict[str, list[float]]:
    return resolve(name, DEFAULTS, parse_settings(texts, known=KNOWN, references=references), LAYERS)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("layers.*.mlp", "model.layers.3.mlp.up.weight", True),
        ("layers.*.mlp", "layers.3.mlp", True),
        ("layers.*.mlp", "model.layers.3.attn.mlp.weight", False),
        ("layers.*.mlp", "model.layers.3.mlp2.weight", False),
        ("layers.*.mlp*", "model.layers.3.mlp2.weight", True),
        ("mlp", "model.layers.3.mlp.up", True),
        ("mlp", "model.layers.3.mlps.up", False),
        ("layers.1", "model.layers.11.up", False),
        ("*.mlp.*", "mlp.weight", False),
        ("*self_attn.q*", "x.self_attn.q_proj.weight", True),
        ("*", "anything.at.all", True),
        ("model.layers.3.mlp.up.weight", "model.layers.3.mlp.up.weight", True),
        ("q+", "q+", True),
        ("q+", "qq", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert bool(name_pattern(pattern).search(name)) is matches


def test_layers_are_counted_in_their_stack() -> None:
    assert layer_of("model.layers.3.experts.7.w1") == ("model.layers", 3)
    assert [LAYERS.depth(f"model.layers.{i}.attn.q.weight") for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert LAYERS.depth("visual.blocks.2.mlp.fc1.weight") == 1
    assert LAYERS.depth("embed.weight") == 0
    assert Layers.of(["h.0.w"]).depth("h.0.w") == 1


@pytest.mark.parametrize(("depth", "expected"), [(0, 0.2), (0.25, 0.5), (0.5, 0.8), (0.75, 0.4), (1, 0.0)])
def test_a_gradient_is_linear_between_its_values(depth: float, expected: float) -> None:
    assert at_depth((0.2, 0.8, 0.0), depth) == pytest.approx(expected)
    assert at_depth(0.3, depth) == 0.3
    assert at_depth((0.7,), depth) == 0.7


def test_a_setting_speaks_of_all_ingredients_or_of_one() -> None:
    name = "model.layers.2.mlp.up.weight"
    assert values(name, "mlp: {weight: 0.25}")["weight"] == [0.25, 0.25]
    assert values(name, "mlp: {weight: {1: 0.25}}")["weight"] == [1.0, 0.25]
    assert values(name, "mlp: {weight: {a: [0, 1]}}")["weight"] == [0.5, 2.0]
    assert values(name, "mlp: {lambda: 0.5, density: [0.1, 0.3]}") == {
        "weight": [1.0, 2.0],
        "density": [0.2, 0.2],
        "lambda": [0.5],
    }
    assert values("embed.weight", "mlp: {weight: 0.25}") == DEFAULTS


def test_a_setting_may_speak_of_some_layers() -> None:
    names = [f"model.layers.{i}.mlp.up.weight" for i in range(5)]
    assert [values(name, "mlp @1-2: {lambda: 0.5}")["lambda"] for name in names] == [
        [1.0],
        [0.5],
        [0.5],
        [1.0],
        [1.0],
    ]
    assert [values(name, "'* @3': {lambda: [0, 1]}")["lambda"] for name in names[2:]] == [
        [1.0],
        [0.75],
        [1.0],
    ]
    assert values("embed.weight", "* @0-9: {lambda: 0.5}") == DEFAULTS


def test_later_settings_win() -> None:
    name = "model.layers.4.mlp.up.weight"
    assert values(name, "*: {weight: 0.1}", "mlp: {weight: {0: 0.2}}")["weight"] == [0.2, 0.1]
    assert values(name, "mlp: {weight: {0: 0.2}}", "*: {weight: 0.1}")["weight"] == [0.1, 0.1]
    assert DEFAULTS["weight"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp: {wieght: 1}", "unknown parameter 'wieght'"),
        ("mlp: {weight: heavy}", "'heavy' is not a number"),
        ("mlp: {weight: []}", r"\[\] is not a number"),
        ("mlp: 3", "expected PATTERN"),
        ("just text", "expected PATTERN"),
        ("mlp: {weight: {2: 1}}", "2 names 0 of the 2 ingredients"),
        ("mlp: {weight: {runs/: 1}}", "names 0 of the 2"),
        ("mlp: {weight: [1", "not valid YAML"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        values("x", text)


def test_a_reference_must_be_unambiguous() -> None:
    with pytest.raises(RecipeError, match="'m' names 2 of the 2"):
        values("x", "mlp: {weight: {m: 1}}", references=("a/m", "b/m"))
    assert values("x.mlp", "mlp: {weight: {b/m: 1}}", references=("a/m", "b/m"))["weight"] == [1.0, 1.0]


def test_yaml_takes_a_mapping_where_the_command_line_takes_texts() -> None:
    common = {"refs": ["a"], "base": "b", "out": "o", "lambda": 0.5}
    mapping = parse_recipe(
        MergeTies, common | {"set": {"layers.*.mlp": {"weight": [0.2, 0.8]}, "*": {"density": 1}}}
    )
    listed = parse_recipe(
        MergeTies, common | {"set": ["layers.*.mlp: {weight: [0.2, 0.8]}", "'*': {density: 1}"]}
    )
    assert mapping.lambda_ == 0.5
    settings = [parse_settings(recipe.set, known=KNOWN, references=["a"]) for recipe in (mapping, listed)]
    assert settings[0] == settings[1]
    assert len(settings[0]) == 2
