"""What a method makes is checked as it is written, like what it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.compatible import check_compatible
from soupkit.errors import CheckpointError, RecipeError
from soupkit.merge.memory import Memory
from soupkit.merge.methods import all_methods
from soupkit.merge.per_tensor import Inputs, merge_tensors
from soupkit.merge.pieces import STRATUM, Arrays
from soupkit.merge.writer import StreamOptions

METHODS = all_methods()
MEANS = [name for name, method in METHODS.items() if method.mean]
SIZES = [STRATUM - 1, STRATUM, STRATUM + 1]


def spoilt(place: int, value: float) -> Any:
    """passthrough, but for one entry."""

    def function(pieces: Any, *, scale: float) -> Iterator[np.ndarray]:
        start = 0
        for weights_KN in pieces:
            result = weights_KN[0] * scale
            if start <= place < start + result.size:
                result[place - start] = value
            start += result.size
            yield result

    return dataclasses.replace(METHODS["passthrough"], name="spoilt", function=function)


def made(
    method: Any, tensors: dict[str, np.ndarray], *, dtype: str | None = None, **options: Any
) -> np.ndarray:
    slots = check_compatible([tensors]).slots
    slots = {name: slot._replace(dtype=dtype or slot.dtype) for name, slot in slots.items()}
    memory = Memory(slots)
    chosen = StreamOptions(**options)
    merge_tensors(Inputs([tensors]), method, lambda _: {"scale": 1.0}, memory, slots=slots, options=chosen)
    return memory.tensors["w"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_method_that_makes_no_number_is_named(size: int, value: float, threads: int) -> None:
    tensors = {"w": np.ones(size, np.float32), "v": np.ones(3, np.float32)}
    method = spoilt(size - 1, value)
    with pytest.raises(CheckpointError, match="tensor 'w': spoilt gave NaN or infinity"):
        made(method, tensors, threads=threads)
    assert not np.isfinite(made(method, tensors, non_finite="keep", threads=threads)[-1])


def test_a_shared_mask_hides_nothing_beside_it() -> None:
    tensors = {"w": np.array([1, -np.inf, 2], np.float32)}
    with pytest.raises(CheckpointError, match="spoilt gave NaN"):
        made(spoilt(2, np.nan), tensors)
    np.testing.assert_array_equal(made(spoilt(1, np.nan), tensors), tensors["w"])


@pytest.mark.parametrize("dtype", ["F16", "F8_E4M3", "F8_E5M2"])
def test_a_number_too_large_for_the_dtype_is_an_overflow(dtype: str) -> None:
    tensors = (
        {"w": np.array([1, -np.inf, 2, 3], np.float32)}
        if dtype != "F8_E4M3"
        else {"w": np.ones(4, np.float32)}
    )
    with pytest.raises(CheckpointError, match=f"tensor 'w' overflows {dtype}"):
        made(spoilt(3, 1e6), tensors, dtype=dtype)


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_of_weights_that_sum_to_zero_is_none(name: str) -> None:
    arrays = Arrays([np.ones((2, 3)), np.full((2, 3), 2.0)])
    given = {"fisher": {"statistics": None}, "regmean": {"grams": None}}.get(name, {})
    with pytest.raises(RecipeError, match=f"{name}: the weights sum to zero"):
        list(METHODS[name].function(arrays, weight=np.zeros(2), **given))


def test_fisher_of_zero_statistics_is_the_mean() -> None:
    arrays, zeros = Arrays([np.ones((2, 3)), np.full((2, 3), 2.0)]), Arrays([np.zeros((2, 3))] * 2)
    merged = arrays.merged(METHODS["fisher"].function(arrays, weight=np.array([1.0, 3.0]), statistics=zeros))
    np.testing.assert_allclose(merged, 1.75)
