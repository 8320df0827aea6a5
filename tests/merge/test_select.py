"""The k largest, against a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soupkit.merge import pieces, select
from soupkit.merge.pieces import Arrays
from soupkit.merge.select import Selected, cut, magnitude


def chosen(rows: np.ndarray, counts: list[int], *, piece: int) -> np.ndarray:
    whole = Arrays(list(rows), piece=piece)
    selected = Selected(cut(whole, counts))
    return np.concatenate([selected.mask(magnitude(each)) for each in whole], axis=1)


def expected(row: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(row.size, np.bool_)
    mask[np.argsort(-np.abs(row), kind="stable")[:count]] = True
    return mask


KINDS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "ties": lambda rng, size: rng.integers(-3, 4, size=size).astype(np.float64),
    "zeros": lambda _, size: np.zeros(size),
    "one": lambda _, size: np.eye(1, size, size // 2)[0],
    "wide": lambda rng, size: rng.normal(size=size) * 10.0 ** rng.integers(-300, 300, size=size),
    "near": lambda rng, size: 1.0 + rng.integers(0, 3, size=size) * 2.0**-52,
    "misleading": lambda rng, size: np.where(np.arange(size) % 5 == 0, rng.normal(size=size), 100.0),
    "subnormal": lambda rng, size: rng.integers(0, 5, size=size) * 5e-324,
}


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("most_candidates", [1 << 20, 50, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_that_of_a_stable_sort(
    kind: str, most_candidates: int, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "MOST_CANDIDATES", most_candidates)
    monkeypatch.setattr(pieces, "SAMPLED", 400 if sampled else 1000)
    monkeypatch.setattr(pieces, "SAMPLE", 100)
    rng = np.random.default_rng(0)
    size = 500
    rows = np.stack([KINDS[kind](rng, size) for _ in range(6)])
    counts = [0, 1, 100, 250, size - 1, size]
    masks = chosen(rows, counts, piece=64)
    for row, count, mask in zip(rows, counts, masks):
        np.testing.assert_array_equal(mask, expected(row, count))


@given(st.lists(st.floats(-1e300, 1e300, width=64), min_size=1, max_size=60), st.data())
def test_any_numbers(numbers: list[float], data: st.DataObject) -> None:
    row = np.array(numbers)
    count = data.draw(st.integers(0, row.size))
    piece = data.draw(st.integers(1, row.size))
    np.testing.assert_array_equal(chosen(row[None], [count], piece=piece)[0], expected(row, count))


def test_few_numbers_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidates that are partitioned stay few, whatever the size of the tensor."""
    held = []
    partition = np.partition
    monkeypatch.setattr(
        np, "partition", lambda values, place: held.append(values.size) or partition(values, place)
    )
    monkeypatch.setattr(select, "MOST_CANDIDATES", 1000)
    rng = np.random.default_rng(0)
    cut(Arrays([rng.normal(size=200_000)], piece=4096), [40_000])
    assert sum(held) <= 1000
