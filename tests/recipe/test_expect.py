"""Expectations on results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.cli.app import run_command_line
from soupkit.errors import RecipeError
from soupkit.recipe.expect import parse_condition

RESULTS: dict[str, Any] = {
    "soup": {
        "metrics": {"test": {"top1": {"value": 0.9, "standard_error": 0.01}}},
        "picks": [4, 7],
        "note": "fine",
    },
    "best": {"test": {"top1": {"value": 0.85}}, "num": 3},
    "several": {
        "metrics": {"runs/v1.5": {"test": {"top1": 0.5}}, "runs/v1": {"test": {"top1": 0.6}}, "a b": {"x": 1}}
    },
    "one": {"metrics": {"test": {"top1": 0.7}}, "inputs": [{"reference": "../runs/v1.5"}]},
    "files": {"files": {"model-1.0.safetensors": {"bytes": 12}, "model-1": {"0": 1}}},
}


def failure(text: str) -> str | None:
    return parse_condition(text, where="f").failure(RESULTS, own="soup")


@pytest.mark.parametrize(
    "text",
    [
        "test.top1 >= 0.9",
        "test.top1 <= 0.9",
        "test.top1 == 0.9",
        "test.top1 > 0.89",
        "test.top1 < 9.1e-1",
        "test.top1 != -1",
        "test.top1.standard_error < 0.02",
        "metrics.test.top1 >= 0.9",
        "picks.1 == 7",
        "test.top1 > best:test.top1",
        "test.top1 > best:test.top1 + 0.04",
        "best:test.top1 > soup:test.top1 - 0.06",
        "best:num == 3",
        "several:runs/v1.5.test.top1 == 0.5",
        "several:runs/v1.test.top1 == 0.6",
        "several:'a b'.x == 1",
        'several:"a b".x == 1',
        "several:'runs/v1.5'.test.top1 == 0.5",
        "one:test.top1 == 0.7",
        "one:../runs/v1.5.test.top1 == 0.7",
        "files:files.model-1.0.safetensors.bytes == 12",
    ],
)
def test_holds(text: str) -> None:
    assert failure(text) is None


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("test.top1 > 0.9", "test.top1 is 0.9"),
        ("test.top1 > best:test.top1 + 0.06", "test.top1 is 0.9, best:test.top1 is 0.85"),
        ("test.top5 > 0", "there is no 'top5' (found: top1)"),
        ("picks.2 > 0", "there is no '2' (found: a list of 2)"),
        ("note > 0", "note is 'fine', not a number"),
        ("best:test > 0", "best:test is top1, not a number"),
        ("several:test.top1 > 0", "there is no 'test' (found: metrics)"),
        ("several:runs/v1.5.test.top5 > 0", "there is no 'top5' (found: top1)"),
    ],
)
def test_fails_and_says_what_was_seen(text: str, seen: str) -> None:
    assert failure(text) == seen


@pytest.mark.parametrize(
    "text",
    [
        "",
        "test.top1",
        "test.top1>=0.9",
        "test.top1 >= ",
        "test.top1 => 0.9",
        "0.9 <= test.top1",
        "test.top1 >= 0.9 + 0.1",
        "test.top1 >= best:test.top1 * 2",
        "test.top1 >= best:test.top1 - x",
        "test.top1 >= 0.9 and 1",
        "__import__('os') >= 0",
        "a:b:c > 1",
        0.9,
        None,
    ],
)
def test_refuses_other_forms(text: Any) -> None:
    with pytest.raises(RecipeError, match="expected PATH OPERATOR"):
        parse_condition(text, where="f")


def test_what_can_be_neither_met_nor_unmet() -> None:
    unmet = parse_condition("test.top1 > 0.95", where="f")
    unfounded = parse_condition("test.top1 > best:test.top5", where="f")
    assert unmet.unfounded(RESULTS, own="soup") is None
    assert unfounded.unfounded(RESULTS, own="soup") == "there is no 'top5' (found: top1)"


@pytest.mark.parametrize(
    ("condition", "code", "written"),
    [
        ("outputs.bytes.none > 0", 1, True),
        ("inputs.5.content > 0", 1, True),
        ("notes.nothing >= 0", 1, True),
        ("held_out.top1 > 0.5", 1, False),
        ("metrics.test.nll < 9", 1, False),
        ("nowhere:recipe.top > 0", 1, False),
        ("recipe.overwrite > 0.5 0.5", 2, False),
        ("recipe.threads > 5", 3, True),
        ("recipe.threads < 5", 0, True),
    ],
)
def test_exit_codes_tell_unmet_from_impossible(
    condition: str, code: int, written: bool, save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        save(f"m.{k}", {"w": np.full(3, k, np.float32)})
    step = {
        "command": "merge uniform",
        "refs": ["m.0", "m.1"],
        "threads": 1,
        "out": "o",
        "expect": [condition],
    }
    Path("r.yaml").write_text(json.dumps({"steps": {"s": step}}))
    assert run_command_line(["run", "r.yaml", "--quiet"]) == code
    assert Path("o").exists() == written
