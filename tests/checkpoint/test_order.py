"""Natural order: as people count, for whatever names training programs give."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.order import last_number, naturally, without_number
from soupkit.checkpoint.reference import open_references
from soupkit.manifest import Manifest

ORDERS = {
    "trainer": ["checkpoint-4", "checkpoint-8", "checkpoint-12", "checkpoint-100"],
    "accelerate": ["checkpoint_0", "checkpoint_2", "checkpoint_10"],
    "lightning": ["epoch=9-step=90.ckpt", "epoch=9-step=100.ckpt", "epoch=10-step=110.ckpt"],
    "padded": ["epoch-0009", "epoch-0010", "epoch-0100"],
    "mixed padding": ["epoch-08", "epoch-9", "epoch-010"],
    "decimals": ["alpha-0.25", "alpha-0.5", "alpha-1.0", "alpha-1.25", "alpha-10.5"],
    "exponents": ["ckpt-9e4", "ckpt-95000", "ckpt-1e5", "ckpt-200000"],
    "units": ["step-900k", "step-1M", "step-1.5M", "step-2B"],
    "negative": ["shift=-10", "shift=-2", "shift=0", "shift=3"],
    "negative after a dash": ["shift--10", "shift--2", "shift-0", "shift-3"],
    "dates": ["run-2024-01-09", "run-2024-01-10", "run-2024-2-1"],
    "dates with dots": ["2024.1.9", "2024.1.10", "2024.10.1"],
    "versions": ["v1.9", "v1.10", "v2.0"],
    "in folders": ["runs/2/final", "runs/10/final", "runs/10/later"],
    "files": ["epoch_9.safetensors", "epoch_10.safetensors"],
    "two numbers": ["step1000-tokens4B", "step9000-tokens36B", "step10000-tokens40B"],
    "no numbers": ["a", "b", "c"],
    "other digits": ["a²", "a٣", "b1"],
    "hexadecimal": ["ckpt-1e5f", "ckpt-2a"],
}


@pytest.mark.parametrize("name", ORDERS)
def test_names_sort_as_people_count(name: str) -> None:
    names = ORDERS[name]
    for shuffled in itertools.islice(itertools.permutations(names), 24):
        assert naturally(shuffled) == names


def test_the_last_number_is_read_as_a_number() -> None:
    names = ("epoch=9-step=90", "a-0.5", "x=-3", "c-1e5", "none", "s-2k")
    assert [last_number(name) for name in names] == [90, 0.5, -3, 100_000, None, 2_000]
    assert last_number("c-1e999999999") is not None  # and is not computed


def test_names_without_a_number_among_others() -> None:
    assert without_number(["run1/epoch_9", "run1/epoch_10", "run1/epoch_latest"]) == ["run1/epoch_latest"]
    assert without_number(["run1/best", "run1/last"]) == []
    assert without_number(["run/1", "run/2"]) == []
    assert without_number(["run1/x"]) == []


def test_globs_open_in_natural_order_and_lists_as_given(save: Any, tmp_path: Path) -> None:
    for step in (500, 1000, 1500):
        save(f"runs/checkpoint-{step}", {"w": np.full(1, step, np.float32)})

    def steps(*refs: str) -> list[float]:
        return [
            float(checkpoint["w"][0]) for checkpoint in open_references([f"{tmp_path}/{ref}" for ref in refs])
        ]

    assert steps("runs/*") == [500, 1000, 1500]
    assert steps("runs/checkpoint-1*", "runs/checkpoint-500") == [1000, 1500, 500]
    assert steps("runs/checkpoint-1500", "runs/checkpoint-500") == [1500, 500]
    for members, wanted in (
        (["checkpoint-1000", "checkpoint-1500", "checkpoint-500"], [500, 1000, 1500]),
        (["checkpoint-1500", "checkpoint-500", "checkpoint-1000"], [1500, 500, 1000]),
    ):
        Manifest(command="convert", recipe={}, notes={"members": members}).write(tmp_path / "runs")
        assert steps("runs") == wanted
