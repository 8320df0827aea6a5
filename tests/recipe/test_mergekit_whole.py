"""Nothing in a mergekit file is ignored: what it means in mergekit, or a refusal that says why."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from recipe.mergekit_refused import REFUSED, TWO, L, M, P, T, one

from soupkit.commands import COMMANDS
from soupkit.errors import RecipeError
from soupkit.recipe.mergekit.recipes import Translated, translate
from soupkit.recipe.parse import parse_recipe
from soupkit.recipe.settings import Layers, parse_settings, resolve


def read(text: str) -> Translated:
    return translate(text, where="f.yml")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_with_the_reason(name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(RecipeError, match=message) as raised:
        read(text)
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize(
    ("given", "meant"), [("0.0", False), ("1.0", True), ("'true'", True), ("no", False), ("0", False)]
)
def test_booleans_as_mergekit_writes_them(given: str, meant: bool) -> None:
    assert read(f"{T}{M}parameters: {{normalize: {given}}}\n").options["normalize"] is meant
    rows = read(f"merge_method: nuslerp\n{M}parameters: {{nuslerp_flatten: {given}}}\n").options["rows"]
    assert rows is (not meant)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("'0.5'", 0.5),
        ("1e-1", 0.1),
        ("true", 1),
        ("[0.5]", 0.5),
        ("010", 8),
        ("1_0", 10),
        ("[2, 2]", 2),
        ("1:30", 90),
        ("0x10", 16),
        ("[{value: 3}, {filter: mlp, value: 4}]", 3),
    ],
)
def test_numbers_as_yaml_and_mergekit_read_them(given: str, meant: float) -> None:
    assert read(one(f"{{weight: {given}}}")).options["coefficients"] == [meant, 0.5]


@pytest.mark.parametrize(
    ("model", "reference"),
    [
        ("org/name@v1+org/lora@v2", "org/name@v1+org/lora@v2"),
        ("{model: {path: org/name, revision: v2}}", "org/name@v2"),
        ("{model: {path: a}, lora: {path: ad}}", "a+ad"),
        ("{model: a, lora: ad@x}", "a+ad@x"),
        ("{model: {path: a+b}}", "a+b"),
    ],
)
def test_references(model: str, reference: str) -> None:
    found = read(f"{L}models: [{{model: {model}, parameters: {{weight: 1}}}}]\n")
    assert found.options["refs"] == [reference]
    on_base = read(f"{T}models: [{{model: {model}, parameters: {{weight: 1}}}}]\n")
    assert on_base.options["refs"] == [reference]


def test_a_base_with_an_adapter_and_the_base_of_a_slice() -> None:
    models = "models: [{model: base+two}, {model: base}]\nparameters: {weight: 1}\n"
    found = read(f"merge_method: ties\nbase_model: base+one\n{models}")
    assert found.options["base"] == "base+one"
    assert found.options["refs"] == ["base+two", "base"]
    assert found.config == "base"
    sources = "{model: a, layer_range: [1, 3], parameters: {weight: 1}}, {model: own, layer_range: [0, 2]}"
    sliced = read(
        f"merge_method: ties\nbase_model: base\nslices: [{{base_model: own, sources: [{sources}]}}]\n"
    )
    assert sliced.options["base"] == "own"
    assert sliced.options["layers"] == ["1:3", "0:2"]
    assert sliced.config == "base"


def test_the_configuration_is_that_of_base_model() -> None:
    assert read(f"{T}{M}").config == "base"
    assert read(f"{L}{M}base_model: fa\n").config is None
    assert read(f"{L}{M}base_model: fa\n").command == "merge weighted"
    second = read(f"{L}{M}base_model: fb\ntokenizer_source: base\n")
    assert (second.command, second.config, second.tokenizer) == ("merge linear", "fb", "fb")
    assert read(f"{L}{M}tokenizer_source: fb\n").config == "fb"
    assert (
        read(f"{P}base_model: c\nslices: [{{sources: [{{model: a, layer_range: [0, 2]}}]}}]\n").config == "c"
    )


def test_karcher_takes_the_base_for_one_more_model() -> None:
    found = read(f"merge_method: karcher\nbase_model: base\n{TWO}")
    assert found.options["refs"] == ["fa", "fb", "base"]
    assert any("one more model" in note for note in found.notes)
    assert read("merge_method: karcher\nbase_model: fa\n" + TWO).options["refs"] == ["fa", "fb"]


def values(text: str, name: str, parameter: str, *, names: list[str]) -> list[float]:
    """What a file's parameter comes to for one tensor."""
    found = read(text)
    recipe = parse_recipe(COMMANDS[found.command].recipe_type(), found.options | {"out": "out"})
    refs = found.options["refs"]
    settings = parse_settings(recipe.set, known=["weight", "scale", "t", "coefficient"], references=refs)
    given = getattr(recipe, "coefficients" if parameter == "coefficient" else parameter)
    default = list(given) if isinstance(given, tuple) else [given]
    default *= len(refs) if len(default) == 1 and parameter in ("weight", "coefficient") else 1
    return resolve(name, {parameter: default}, settings, Layers.of(names))[parameter]


LAYERS = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"] + [
    f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("mlp", "self_attn.q_proj")
]


def test_the_first_filter_that_fits_counts_model_before_slice_before_file() -> None:
    text = yaml.safe_dump(
        {
            "merge_method": "linear",
            "slices": [
                {
                    "sources": [
                        {"model": "a", "layer_range": [0, 5], "parameters": {"weight": [
                            {"filter": "q_proj", "value": 1}, {"filter": "self_attn", "value": 2}]}},
                        {"model": "b", "layer_range": [0, 5]},
                    ],
                    "parameters": {"weight": [{"filter": "mlp", "value": [0, 4]}]},
                }
            ],
            "parameters": {"weight": [{"filter": "norm", "value": 5}, {"filter": "*", "value": 6},
                                      {"filter": "mlp", "value": 7}]},
        }
    )  # fmt: skip
    found = {name: values(text, name, "weight", names=LAYERS) for name in LAYERS}
    assert found["model.layers.1.self_attn.q_proj.weight"] == [1, 6]
    assert found["model.layers.1.mlp.weight"] == [1, 1]
    assert found["model.norm.weight"] == [5, 5]
    assert found["lm_head.weight"] == [6, 6]


def test_gradients_run_over_the_slice_and_its_first_value_goes_to_what_stands_outside() -> None:
    scale = [{"filter": "mlp", "value": [2, 4]}, {"value": 8}]
    sliced = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 3], "parameters": {"scale": [0, 1]}}]},
            {"sources": [{"model": "b", "layer_range": [1, 3], "parameters": {"scale": scale}}]},
        ],
    }
    text = yaml.safe_dump(sliced)
    found = {name: values(text, name, "scale", names=LAYERS)[0] for name in LAYERS}
    assert [found[f"model.layers.{i}.mlp.weight"] for i in range(5)] == [0, 0.5, 1, 2, 4]
    assert [found[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(5)] == [0, 0.5, 1, 8, 8]
    assert found["model.embed_tokens.weight"] == 0
    assert found["model.norm.weight"] == found["lm_head.weight"] == 8


def test_slices_with_parameters_of_their_own() -> None:
    slices = [
        {"sources": [{"model": "base", "layer_range": [0, 2]}, {"model": "a", "layer_range": [0, 2]}],
         "parameters": {"t": 0.1}},
        {"sources": [{"model": "base", "layer_range": [1, 4]}, {"model": "a", "layer_range": [1, 4]}]},
    ]  # fmt: skip
    config = {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": slices,
        "parameters": {"t": [0.5, 1.0]},
    }
    text = yaml.safe_dump(config)
    assert read(text).options["layers"] == ["0:2,1:4"]
    found = {name: values(text, name, "t", names=LAYERS)[0] for name in LAYERS}
    assert [found[f"model.layers.{i}.mlp.weight"] for i in range(5)] == [0.1, 0.1, 0.5, 0.75, 1.0]
    assert (found["model.embed_tokens.weight"], found["lm_head.weight"]) == (0.1, 0.5)


def test_a_filter_with_a_digit_is_no_layer() -> None:
    """fc1 is in the same names wherever a slice moves its layers."""
    text = (
        P
        + "slices: [{sources: [{model: a, layer_range: [1, 3], parameters: "
        + "{scale: [{filter: fc1, value: 0}]}}]}]"
    )
    names = [f"layers.{i}.{part}.weight" for i in range(2) for part in ("fc1", "fc2")]
    assert [values(text, name, "scale", names=names) for name in names] == [[0], [1], [0], [1]]


def test_conditions_alone_are_enough_for_a_step_length() -> None:
    """nearswap's t has no default of soupkit's."""
    text = "merge_method: nearswap\nbase_model: base\nmodels: [{model: a}]\n"
    text += "parameters: {t: [{filter: mlp, value: 1}, {value: 2}]}\n"
    assert values(text, "model.layers.0.mlp.weight", "t", names=LAYERS) == [1]
    assert values(text, "lm_head.weight", "t", names=LAYERS) == [2]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (T + M + "parameters: {density: 0.3}\n", "density has no effect in task_arithmetic"),
        (
            "merge_method: nuslerp\n" + M + "parameters: {nuslerp_row_wise: 1.0}\n",
            "no effect while nuslerp_flatten",
        ),
        (L + M + "dtype: bfloat16\nout_dtype: float32\n", "rounds to bfloat16"),
        (L + M + "name: mine\n", "name 'mine'"),
    ],
)
def test_what_changes_nothing_is_said(text: str, note: str) -> None:
    assert any(note in found for found in read(text).notes)


def test_a_byte_order_mark_anchors_and_merge_keys_are_yaml() -> None:
    text = "\ufeff" + L + "models:\n- &a {model: fa, parameters: {weight: 1}}\n- {<<: *a, model: fb}\n"
    assert read(text).options["refs"] == ["fa", "fb"]


def test_every_method_reads_a_slice() -> None:
    """A range of layers is a model of that depth, for every method."""
    from soupkit.recipe.mergekit.methods import METHODS

    for name, method in METHODS.items():
        models = ["base", "a", "b"][: 3 if method.least > 1 or method.most is None else 2]
        models = models[1:2] if name == "passthrough" else models
        sources: list[dict[str, Any]] = [{"model": model, "layer_range": [1, 3]} for model in models]
        required = dict.fromkeys(method.required, 0.5)
        config = {
            "merge_method": name,
            "base_model": "base",
            "slices": [{"sources": sources}],
            "parameters": required,
        }
        assert read(yaml.safe_dump(config)).options["layers"] == ["1:3"], name
