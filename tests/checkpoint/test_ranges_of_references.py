"""References with ranges: every checkpoint of a training run by one word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.reference import open_references, spelled_out
from soupkit.errors import ReferenceError


def test_a_range_is_spelled_out_number_by_number() -> None:
    assert spelled_out("org/name@step{1000..3000..1000}") == [f"org/name@step{n}000" for n in (1, 2, 3)]
    assert spelled_out("epoch-{008..010}") == ["epoch-008", "epoch-009", "epoch-010"]
    assert spelled_out("run-{0..1}/epoch-{1..7..3}") == [
        f"run-{i}/epoch-{j}" for i in (0, 1) for j in (1, 4, 7)
    ]
    assert spelled_out("plain/{name}") == ["plain/{name}"]


def test_an_empty_range_is_refused() -> None:
    for text in ("a{3..1}", "a{1..3..0}"):
        with pytest.raises(ReferenceError, match="is an empty range"):
            spelled_out(text)


def test_ranges_open_and_a_path_of_that_name_comes_first(save: Any, tmp_path: Path) -> None:
    for number in (1, 2, 10):
        save(f"epoch-{number}", {"w": np.full(2, number, np.float32)})
    opened = open_references([str(tmp_path / "epoch-{1..2}"), str(tmp_path / "epoch-10")])
    assert [float(checkpoint["w"][0]) for checkpoint in opened] == [1, 2, 10]
    save("odd-{1..2}", {"w": np.zeros(2, np.float32)})
    assert len(open_references([str(tmp_path / "odd-{1..2}")])) == 1
    with pytest.raises(ReferenceError, match="epoch-3"):
        open_references([str(tmp_path / "epoch-{1..3}")])
