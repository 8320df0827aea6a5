"""`diff`: integers stand apart from the figures, and tensors of every shape can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.cli.app import run_command_line

Save = Callable[..., Path]


def diff(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    capsys.readouterr()
    assert run_command_line(["diff", str(a), str(b), "--json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("left", "right", "first"),
    [
        (np.array(7), np.array(9_000_000), [7, 9_000_000]),
        (np.array([1, 2, 3], np.int32), np.array([1, 5, 6], np.int32), [2, 5]),
        (np.array([True, False]), np.array([True, True]), [False, True]),
        (np.array(2**62 + 1), np.array(2**62), [2**62 + 1, 2**62]),
        (np.array([3], np.uint8), np.array([4], np.uint8), [3, 4]),
        (np.array(7.0, np.float32), np.array(9e6, np.float32), [7.0, 9e6]),
        (np.array(7.0, np.float32), np.array(9_000_000), [7.0, 9_000_000]),
        (np.array([7], np.float16), np.array([9], np.int32), [7.0, 9]),
    ],
)
def test_integers_are_in_no_figure(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: Any, right: Any, first: list[Any]
) -> None:
    w, v = np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32)
    a, b = (
        save("a", {"w": w, "bn.num_batches_tracked": left}),
        save("b", {"w": v, "bn.num_batches_tracked": right}),
    )
    result, said = diff(a, b, capsys)
    assert result["overall"]["relative_distance"] == pytest.approx(0.1)
    assert [row["tensor"] for row in result["tensors"]] == ["w"]
    (row,) = result["integers"]
    assert row["first"] == first
    assert row["num_different"] == int((left != right).sum())
    assert (
        f"integers differ in 1 of 1 tensors, for example bn.num_batches_tracked: {first[0]} and {first[1]}"
        in said
    )
    result, said = diff(a, a, capsys)
    assert result["num_equal"] == 2
    assert result["integers"][0]["first"] is None
    assert "integers" not in said


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 4)])
def test_tensors_of_no_elements_are_equal(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...]
) -> None:
    tensors = {"e": np.zeros(shape, np.float32), "i": np.zeros(shape, np.int64), "w": np.ones(2, np.float32)}
    result, _ = diff(save("a", tensors), save("b", {**tensors, "w": 2 * tensors["w"]}), capsys)
    assert {row["tensor"]: row["equal"] for row in result["tensors"]} == {"e": True, "w": False}
    assert result["integers"][0]["equal"]
    assert result["overall"]["relative_distance"] == 1.0
