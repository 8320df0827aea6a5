"""What the fuzzer found, and what is like it: each ended in a traceback, or took the memory of the
machine."""

import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from convert.test_archives import repacked
from fuzz.samples import ADAPTERS, CONFIGS, FACTORS, MANIFESTS, RECIPES, TENSORS

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.meaning import check_meaning
from soupkit.checkpoint.config.restacked import Origin, stacked_config
from soupkit.checkpoint.config.vocabulary import token_rows
from soupkit.checkpoint.formats.convert import read_pickled
from soupkit.checkpoint.formats.memo import largest_entry
from soupkit.checkpoint.hub.hub import looks_like_hub
from soupkit.checkpoint.tensors import write_tensors
from soupkit.checkpoint.views.adapted import open_adapter
from soupkit.checkpoint.views.stacked import layer_in, main_stack
from soupkit.errors import CheckpointError, CompatibilityError, RecipeError, ReferenceError, SoupkitError
from soupkit.events import silent
from soupkit.jobs.files.report import report
from soupkit.jobs.files.verify import verify
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.recipe.expect import parse_condition
from soupkit.recipe.inspect import Verify
from soupkit.recipe.report import Report
from soupkit.recipe.settings import layer_of, parse_settings
from soupkit.recipe.shared import check_blocks
from soupkit.recipe.steps import load_yaml, parse_steps
from soupkit.stages.steps import show_plan
from soupkit.world import World

LONG = "9" * 5000


@pytest.mark.parametrize("command", ["[merge]", "{a: b}", "[]", "3", "2.5"])
def test_a_command_that_is_no_word(command: str) -> None:
    with pytest.raises(RecipeError, match="unknown command"):
        parse_steps(f"command: {command}\nout: x", where="recipe.yaml")


@pytest.mark.parametrize(
    "text", ["!!timestamp x", "!!bool x", "!!int ''", "!!binary é", "!!float a", "!!int 1:b"]
)
def test_scalars_whose_tag_they_do_not_fit(text: str) -> None:
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_yaml(f"a: {text}", where="recipe.yaml")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        parse_steps(RECIPES[0], [f"seed={text}"], where="recipe.yaml")


@pytest.mark.parametrize("bracket", ["[", "{a: ", "[{b: "])
def test_brackets_that_nest_without_end(bracket: str) -> None:
    with pytest.raises(RecipeError, match="nested brackets"):
        load_yaml(bracket * 101, where="recipe.yaml")
    assert load_yaml("[" * 90 + "1" + "]" * 90, where="recipe.yaml")


def test_an_output_of_a_name_that_no_file_can_have() -> None:
    steps = parse_steps(f"command: merge uniform\nrefs: [a]\nout: {'a' * 300}", where="recipe.yaml").steps
    assert show_plan(steps, silent)["steps"]["main"]["action"] == "run"
    assert Manifest.read_if_any(Path("a" * 300)) is None
    assert looks_like_hub("a" * 300 + "/b")


@pytest.mark.parametrize("number", ["\u00b2", LONG, "\u2460"])
def test_digits_that_are_no_number(number: str) -> None:
    condition = parse_condition(f"trace.{number} > 1", where="recipe.yaml") if number != "\u2460" else None
    assert condition is None or "there is no" in str(condition.failure({"own": {"trace": [1, 2]}}, own="own"))
    assert layer_of(f"layers.{number}.a") == ("", None)
    assert layer_in(f"layers.{number}.a", "layers") is None
    assert main_stack({f"x.{number}.a": 0, "layers.0.a": 0}) == "layers"  # type: ignore[dict-item]
    assert check_meaning([{"id2label": {number: "cat"}}, {"id2label": {number: "dog"}}], ["a", "b"]) == ()
    with pytest.raises(RecipeError, match=r"names 0 of the 1|is not valid YAML"):
        parse_settings([f"a: {{weight: {{'{number}': 1}}}}"], known=["weight"], references=["a"])
    with pytest.raises(RecipeError, match="blocks is"):
        check_blocks(number)


def test_numbers_too_large_for_a_float() -> None:
    with pytest.raises(RecipeError, match="is too large"):
        parse_settings([f"a: {{weight: 1{'0' * 400}}}"], known=["weight"], references=["a"])
    seen = parse_condition("big > 1", where="recipe.yaml").unfounded({"own": {"big": 10**400}}, own="own")
    assert seen == "big is an integer of 1329 bits, too large for a number"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": None}, "r is None"),
        ({"r": "16"}, "r is '16'"),
        ({"r": True}, "r is True"),
        ({"r": 2.5}, "r is 2.5"),
        ({"r": float("inf")}, "r is inf"),
        ({"r": -1, "use_rslora": True}, "r is -1"),
        ({"lora_alpha": [1]}, "lora_alpha is"),
        ({"lora_alpha": "gaussian"}, "lora_alpha is 'gaussian'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, "lora_alpha is an integer of 1329 bits"),
        ({"rank_pattern": 3}, "rank_pattern is 3"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern 'q_proj' is 'x'"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern 'q_proj' is None"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern is"),
        ({"rank_pattern": {"(a+)+c": 3}}, "at most 8 groups and 3 repeats, none of a group"),
        ({"rank_pattern": {"a?" * 30: 3}}, "at most 8 groups"),
        ({"alpha_pattern": {"(a|a)" * 30: 3}}, "at most 8 groups"),
        ({"alpha_pattern": {".*.*.*.*c": 3}}, "at most 8 groups"),
        ({"rank_pattern": {"x" * 1000: 3}}, "at most 8 groups"),
    ],
)
def test_adapters_whose_scale_is_no_number(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    write_tensors(tmp_path, FACTORS, file_name="adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(ADAPTERS[0] | change))
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        open_adapter(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-here/x", "\0"])
def test_adapters_of_a_base_that_no_path_can_name(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path, FACTORS, file_name="adapter_model.safetensors")
    config = ADAPTERS[0] | {"base_model_name_or_path": name, "revision": "v"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert open_adapter(tmp_path).base_reference == f"{name}@v"


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": "linear"},
        {"rope_scaling": 3},
        {"rope_scaling": [1]},
        {"rope_parameters": 2.5},
        {"pretrained_cfg": 3, "id2label": None},
        {"pretrained_cfg": "x", "label2id": {"a": [1]}, "id2label": None},
    ],
)
def test_configurations_of_other_kinds(change: dict[str, Any]) -> None:
    check_meaning([CONFIGS[0], CONFIGS[0] | change], ["a", "b"], mismatch="warn")


def test_a_rope_scaling_of_another_kind_is_told() -> None:
    (remark,) = check_meaning([{"rope_scaling": "linear"}, {"rope_scaling": {"factor": 2}}], ["a", "b"])
    assert "rope_scaling is linear in a" in remark


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mlp_only_layers", "x"),
        ("mlp_only_layers", 3),
        ("full_attn_idxs", ["a"]),
        ("full_attn_idxs", 2.5),
        ("cross_attention_layers", {"a": 1}),
        ("no_rope_layers", 5),
        ("moe_layers", 7),
        ("moe_layers", "ab"),
        ("first_k_dense_replace", []),
        ("attention_types", [[1]]),
    ],
)
def test_rules_of_layers_of_other_kinds(key: str, value: object) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 4, key: value}
    with pytest.raises(CompatibilityError, match=key):
        stacked_config([Origin(config, 4, 1, 4), Origin(config, 4, 0, 2)], "model.layers")


def test_a_model_type_that_is_no_word() -> None:
    config = {"model_type": ["llama"], "num_hidden_layers": 4}
    with pytest.raises(CompatibilityError, match=r"config\.json"):
        stacked_config([Origin(config, 4, 1, 4), Origin(config, 4, 0, 2)], "model.layers")


@pytest.mark.parametrize("row", ["1e999", "NaN", "null", "[1]", '"x"'])
def test_tokens_whose_row_is_no_number(tmp_path: Path, row: str) -> None:
    path = tmp_path / "tokenizer.json"
    for text in (
        '{"model": {"vocab": {"a": %s}}}',
        '{"model": {"vocab": {}}, "added_tokens": [{"content": "a", "id": %s}]}',
    ):
        path.write_text(text % row)
        with pytest.raises(CheckpointError, match="the vocabulary cannot be read"):
            token_rows(path)


@pytest.mark.parametrize("bends", [2.5, 3, True, "bend"])
def test_reports_of_manifests_with_other_notes(tmp_path: Path, bends: object) -> None:
    place = tmp_path / "c"
    place.mkdir()
    write_tensors(place, TENSORS)
    (place / MANIFEST_NAME).write_text(json.dumps(MANIFESTS[2] | {"notes": {"bends": bends}}))
    assert report(Report(path=place, out=tmp_path / "page.html"), World(threads=1), silent)["bytes"] > 0


def far(opcode: bytes) -> bytes:
    return b"}" + opcode + b"."


def test_a_pickle_that_numbers_its_values_to_the_sky_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """The reader in C would take 32 bytes for each number below."""
    assert largest_entry(far(b"r" + struct.pack("<I", 2**31))) == 2**31
    assert largest_entry(far(b"p4000000000\n")) == 4_000_000_000
    assert largest_entry(b"N.") == -1
    assert largest_entry(pickle.dumps([["a"], ["b"]], protocol=2)) < 20
    for opcode in (b"r" + struct.pack("<I", 2**31), b"p4000000000\n"):
        path = repacked(tmp_path, lambda records, opcode=opcode: records.update({"m/data.pkl": far(opcode)}))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match="numbers more values than it has bytes"):
            read_pickled(path)
    torch.save({str(number): torch.tensor(number) for number in range(300)}, tmp_path / "m.pt")  # LONG_BINPUT
    assert len(read_pickled(tmp_path / "m.pt").tensors) == 300


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-here/x"])
def test_inputs_of_a_manifest_whose_names_no_file_can_have(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path, TENSORS)
    inputs = [{"reference": name, "path": "b" * 300, "content": "0"}]
    changed = MANIFESTS[2] | {"inputs": inputs, "notes": {}}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(changed))
    with pytest.raises(SoupkitError):
        verify(Verify(directory=tmp_path, inputs=True, threads=1), World(threads=1), silent)


@pytest.mark.parametrize(
    "text",
    ["command: report\npath: Z", "command: verify\ndirectory: Z", "command: merge uniform\nrefs: [a, "
                                                                  "Z]\nout: o",
     "command: merge uniform\nrefs: [a]\nout: Z", "command: merge greedy\nrefs: [a]\ndata: Z\nout: o"],
)  # fmt: skip
def test_a_zero_in_a_text_of_a_recipe(text: str) -> None:
    with pytest.raises(RecipeError, match=r"expected a (path|string|list)"):
        parse_steps(text.replace("Z", '"x\\0y"'), where="recipe.yaml")


@pytest.mark.parametrize("path", ["x\0y", "x" * 256, "y/" * 2100, "\ud800"])
@pytest.mark.parametrize("where", ["inputs", "members", "files"])
def test_paths_of_a_manifest_that_no_system_takes(where: str, path: str, tmp_path: Path) -> None:
    entry = {"reference": "a", "content": "0" * 32, "path": "a"} | (
        {"path": path} if where == "inputs" else {}
    )
    manifest = {
        "format": 1, "command": "merge uniform", "recipe": {}, "metrics": {}, "trace": [],
        "inputs": [entry],
        "outputs": {"files": {path: {}}} if where == "files" else {},
        "notes": {"members": [path]} if where == "members" else {},
    }  # fmt: skip
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"{where}.* is not what it should be"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["x\0y", "x" * 300])
def test_a_reference_that_no_system_takes(name: str, tmp_path: Path) -> None:
    with pytest.raises(ReferenceError, match="cannot be"):
        Checkpoint(tmp_path / name)
