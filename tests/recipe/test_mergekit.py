"""mergekit's files in soupkit's words."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from soupkit.commands import COMMANDS
from soupkit.errors import RecipeError
from soupkit.recipe.mergekit.methods import METHODS
from soupkit.recipe.mergekit.recipes import translate
from soupkit.recipe.parse import parse_recipe


def read(config: dict[str, Any]) -> Any:
    return translate(yaml.safe_dump(config), where="file.yaml")


def models(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": parameters} for name in names]


def test_plain_numbers_become_options() -> None:
    found = read(
        {
            "merge_method": "della",
            "base_model": "base",
            "models": [
                *models("a", weight=0.5, density=0.3),
                *models("b", weight=1, density=0.6),
                {"model": "base"},
            ],
            "parameters": {"lambda": 0.7, "epsilon": 0.05, "int8_mask": True},
            "dtype": "bfloat16",
        }
    )
    assert found.command == "merge della-ties"
    assert found.options == {
        "base": "base", "refs": ["a", "b"], "weight": [0.5, 1], "density": [0.3, 0.6], "lambda": 0.7,
        "epsilon": 0.1,
        "normalize": True, "dtype": "bfloat16",
    }  # fmt: skip
    assert any("--seed" in note for note in found.notes)


def test_the_threshold_of_ram_is_no_spread_of_della() -> None:
    config = {"merge_method": "ramplus_tl", "base_model": "base", "models": models("a", "b")}
    found = read(config | {"parameters": {"epsilon": 0.001, "r": 0.3, "alpha": 0.4}})
    assert found.command == "merge ram-plus"
    expected = {"base": "base", "refs": ["a", "b"], "epsilon": 0.001, "gain": 0.3, "clip": 0.4}
    assert {name: found.options[name] for name in expected} == expected


def test_filters_and_gradients_become_settings_with_the_same_precedence() -> None:
    found = read(
        {
            "merge_method": "ties",
            "base_model": "base",
            "models": [
                *models("a", weight=[{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]),
                *models("b", weight=1.0, density=[0.2, 0.5]),
            ],
            "parameters": {"density": 0.9},
        }
    )
    assert found.options["set"] == [
        '{"*": {"weight": {"0": 0.5}}}',
        '{"*mlp*": {"weight": {"0": [0, 1]}}}',
        '{"*": {"weight": {"1": 1.0}}}',
        '{"*": {"density": {"1": [0.2, 0.5]}}}',
    ]
    assert found.options["density"] == 0.9


@pytest.mark.parametrize("name", METHODS)
def test_every_translation_is_a_recipe(name: str) -> None:
    method = METHODS[name]
    config: dict[str, Any] = {"merge_method": name, "base_model": "base", "models": models("a", "b")}
    if name == "linear":
        config.pop("base_model")  # it would be one more model, without a weight
    required = dict.fromkeys(method.required, 0.5)
    if name == "passthrough":
        config = {"merge_method": name, "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}]}
    elif name in ("slerp", "nearswap", "arcee_fusion"):
        config["models"] = models("base", "a")
    for entry in config.get("models", []):
        entry["parameters"] = {key: value for key, value in required.items() if key == "weight"}
    config["parameters"] = {key: value for key, value in required.items() if key != "weight"}
    found = read(config)
    parse_recipe(COMMANDS[found.command].recipe_type(), found.options | {"out": "out"})


def test_slerp_starts_at_the_base() -> None:
    found = read(
        {"merge_method": "slerp", "base_model": "b", "models": models("a", "b"), "parameters": {"t": 0.3}}
    )
    assert found.options["refs"] == ["b", "a"]


def test_adapters_are_named_by_themselves() -> None:
    found = read(
        {"merge_method": "task_arithmetic", "base_model": "base", "models": models("base+lora", weight=1)}
    )
    assert found.options["refs"] == ["lora"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1], "is not a mergekit configuration"),
        ({"models": []}, "has no merge_method"),
        ({"merge_method": "tise", "models": []}, "no merge method 'tise'"),
        ({"merge_method": "ties", "models": models("a", weight=1)}, "ties without base_model"),
        ({"merge_method": "ties", "models": models("a"), "base_model": "b"}, "'weight' is missing"),
        ({"merge_method": "linear", "models": models("a", weight=1, wieght=1)}, "the parameter 'wieght'"),
        (
            {"merge_method": "linear", "models": models("a", weight=1), "modules": {}},
            "does not know the key 'modules'",
        ),
        (
            {"merge_method": "linear", "models": models("a", weight=1), "tokenizer_source": "union"},
            "a tokenizer built",
        ),
        ({"merge_method": "linear", "models": models("a", weight=1), "dtype": "int4"}, "dtype 'int4'"),
        ({"merge_method": "linear", "models": ["a"]}, "the model 'a'"),
        ({"merge_method": "passthrough", "models": models("a", "b")}, "passthrough: 2 models, expected 1"),
        (
            {"merge_method": "slerp", "slices": [{"sources": []}, {"sources": []}], "base_model": "a"},
            r"slices\[0\].sources: expected a list",
        ),
    ],
)
def test_what_soupkit_does_not_do_is_refused(config: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(config)
