"""The engine against float64 by hand, in every dtype, layout, order, chunk size and number of threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint.held import Held
from hypothesis import given
from hypothesis import strategies as st

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Rounding
from soupkit.checkpoint.hashing import BLOCK, content_hash
from soupkit.checkpoint.header import Slot
from soupkit.errors import CheckpointError, CompatibilityError
from soupkit.merge.memory import Memory
from soupkit.merge.mixture import Mixture, interpolate, uniform, weighted
from soupkit.merge.stream import stream
from soupkit.merge.writer import StreamOptions

Save = Callable[..., Path]
Tensors = dict[str, np.ndarray]


def combine(ingredients: list[Any], mixture: Mixture, *, dtype: str | None = None, **options: Any) -> Tensors:
    slots: Mapping[str, Slot] = check_compatible(ingredients).slots
    if dtype:
        slots = {name: slot._replace(dtype=dtype) for name, slot in slots.items()}
    memory = Memory(slots)
    stream(ingredients, mixture, memory, slots=slots, options=StreamOptions(**options))
    return memory.tensors


def names(count: int) -> list[str]:
    return [f"m{k}" for k in range(count)]


def models(count: int, dtype: Any, *, seed: int = 0) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"a": (300, 7), "b": (5,), "c": (), "d": (2, 3, 4), "e": (0, 3)}
    base = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return [
        {
            name: np.asarray(value + 0.1 * rng.normal(size=value.shape)).astype(dtype)
            for name, value in base.items()
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_uniform_is_the_correctly_rounded_mean(count: int) -> None:
    ingredients = models(count, np.float32)
    result = combine(ingredients, uniform(names(count)))
    for name in ("a", "b", "c", "d"):
        columns = zip(*(model[name].reshape(-1).tolist() for model in ingredients))
        exact = [np.float32(float(sum(map(Fraction, column), Fraction(0)) / count)) for column in columns]
        np.testing.assert_array_equal(result[name].reshape(-1), np.array(exact, np.float32))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_dtype_matches_a_float64_reference(dtype: Any) -> None:
    ingredients = models(5, dtype)
    coefficients = [0.5, -0.25, 0.25, 0.375, 0.125]
    result = combine(ingredients, weighted(names(5), coefficients))
    for name in ingredients[0]:
        exact = sum(c * model[name].astype(np.float64) for c, model in zip(coefficients, ingredients))
        if dtype is np.float64:
            np.testing.assert_allclose(
                result[name], exact, rtol=1e-12, atol=1e-14
            )  # ours sums in long double
        else:
            np.testing.assert_array_equal(result[name], nearest(np.asarray(exact), np.dtype(dtype)))


def nearest(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round float64 to the nearest value of a narrow dtype by searching all of its values (ties to even)."""
    if dtype.itemsize > 2:
        return values.astype(dtype)
    bits = np.uint8 if dtype.itemsize == 1 else np.uint16
    every = np.arange(np.iinfo(bits).max + 1, dtype=np.uint32).astype(bits).view(dtype)
    with np.errstate(invalid="ignore"):
        table = np.unique(every.astype(np.float64))
    table = table[np.isfinite(table)]
    flat = values.reshape(-1)
    right = np.clip(np.searchsorted(table, flat), 1, len(table) - 1)
    low, high = table[right - 1], table[right]
    even_low = (low.astype(dtype).view(bits) & 1) == 0
    pick_low = (flat - low < high - flat) | ((flat - low == high - flat) & even_low)
    return np.where(pick_low, low, high).astype(dtype).reshape(values.shape)


@pytest.mark.parametrize("name", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
@given(data=st.data())
def test_narrow_dtypes_are_rounded_once(name: str, data: st.DataObject) -> None:
    dtype = NUMPY_DTYPES[name]
    limit = {"BF16": 1e30, "F16": 6e4, "F8_E4M3": 400, "F8_E5M2": 5e4}[name]
    drawn = data.draw(st.lists(st.floats(-limit, limit), min_size=1, max_size=50))
    # values just beside the midpoints of the narrow dtype: where rounding twice goes wrong
    middle = np.array(drawn).astype(dtype).astype(np.float64)
    step = (
        np.abs(np.spacing(np.array(drawn).astype(dtype)).astype(np.float64)) / 2
        if name == "F16"
        else middle * 2.0**-8
    )
    values = np.concatenate(
        [drawn, middle + step, (middle + step) * (1 + 2.0**-40), (middle + step) * (1 - 2.0**-40)]
    )
    values = values[np.abs(values) <= limit]
    out = np.empty(values.size, dtype)
    with np.errstate(all="ignore"):
        Rounding(values.size).into(values.copy(), out)
    np.testing.assert_array_equal(out, nearest(values, dtype))


def test_rounding_keeps_nan_and_infinities() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1e300, -0.0])
    out = np.empty(5, ml_dtypes.bfloat16)
    with np.errstate(all="ignore"):
        Rounding(5).into(values, out)
    np.testing.assert_array_equal(out.astype(np.float64), [np.nan, np.inf, -np.inf, np.inf, -0.0])
    assert np.signbit(out[4])


def test_double_rounding_would_differ() -> None:
    """1 + 2⁻⁸ + 2⁻³³: float32 rounds it onto bfloat16's midpoint, from where ties-to-even goes down, not
    up."""
    value = np.array([1 + 2.0**-8 + 2.0**-33])
    out = np.empty(1, ml_dtypes.bfloat16)
    Rounding(1).into(value.copy(), out)
    assert float(out[0]) == 1 + 2.0**-7
    assert float(value.astype(np.float32).astype(ml_dtypes.bfloat16)[0]) == 1.0


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_the_bits_depend_on_nothing_but_the_weights(kind: str, save: Save) -> None:
    ingredients = [
        {"big": np.tile(model["a"].reshape(-1), 200), **model} for model in models(3, NUMPY_DTYPES[kind])
    ]
    assert ingredients[0]["big"].size > BLOCK
    mixture = weighted(names(3), [0.2, 0.3, 0.5])
    reference = combine(ingredients, mixture)
    shards = [0, 500, 100_000]
    paths = [
        save(f"m{k}", dict(reversed(model.items())) if k == 1 else model, max_shard_bytes=shards[k])
        for k, model in enumerate(ingredients)
    ]
    checkpoints = [Checkpoint(path) for path in paths]
    for threads, chunk in itertools.product((1, 2, 5), (1 << 10, 1 << 16, BLOCK)):
        result = combine(checkpoints, mixture, threads=threads, chunk=chunk)
        for name, value in reference.items():
            assert result[name].tobytes() == value.tobytes()


def test_the_order_of_the_ingredients_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    ingredients = [{"w": (rng.normal(size=4000) * 10.0 ** rng.integers(-20, 20, 4000))} for _ in range(6)]
    forward = combine(ingredients, uniform(names(6)))
    backward = combine(ingredients[::-1], uniform(names(6)[::-1]))
    assert forward["w"].tobytes() == backward["w"].tobytes()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_identical_copies_give_themselves(dtype: str) -> None:
    model = models(1, NUMPY_DTYPES[dtype])[0]
    for count in (2, 3, 7, 10):
        result = combine([dict(model) for _ in range(count)], uniform(names(count)))
        for name, value in model.items():
            assert result[name].tobytes() == value.tobytes()


def test_interpolation_ends_at_its_ends() -> None:
    a, b = models(2, np.float32)
    for at, end in ((0.0, a), (1.0, b)):
        result = combine([a, b], interpolate("a", "b", at))
        for name, value in end.items():
            np.testing.assert_array_equal(result[name], value)


def test_blocks_take_their_own_coefficients() -> None:
    a, b = models(2, np.float32)
    mixture = Mixture(("a", "b"), np.array([[1.0, 0.25], [0.0, 0.75]]), 1.0, {"d": 1})
    result = combine([a, b], mixture)
    np.testing.assert_array_equal(result["a"], a["a"])
    exact = 0.25 * a["d"].astype(np.float64) + 0.75 * b["d"].astype(np.float64)
    np.testing.assert_array_equal(result["d"], exact.astype(np.float32))


def test_a_zero_coefficient_keeps_nan_out() -> None:
    good, bad = {"w": np.ones(4), "x": np.ones(4)}, {"w": np.full(4, np.nan), "x": np.ones(4)}
    mixture = Mixture(("bad", "good"), np.array([[0.0, 0.5], [1.0, 0.5]]), 1.0, {"x": 1})
    np.testing.assert_array_equal(combine([bad, good], mixture)["w"], np.ones(4))


def test_output_dtype_is_free() -> None:
    ingredients = models(3, ml_dtypes.bfloat16)
    result = combine(ingredients, uniform(names(3)), dtype="F32")
    exact = sum(model["a"].astype(np.float64) for model in ingredients) / 3
    np.testing.assert_array_equal(result["a"], exact.astype(np.float32))


INTEGERS = {
    "first": [3, -1, 5],
    "max": [4, 2, 5],
    "zero": [0, 0, 0],
}


@pytest.mark.parametrize("policy", INTEGERS)
def test_integers_that_differ_follow_the_policy(policy: str) -> None:
    ingredients = [{"n": np.array(values)} for values in ([3, -1, 5], [4, 2, 5], [1, 0, 5])]
    result = combine(ingredients, uniform(names(3)), integers=policy)
    np.testing.assert_array_equal(result["n"], INTEGERS[policy])
    assert result["n"].dtype == np.int64


def test_equal_integers_are_copied_under_every_policy() -> None:
    model = {"n": np.array([2**62 + 1, -3]), "mask": np.array([True, False])}
    for policy in ("first", "max", "zero", "error"):
        result = combine([dict(model), dict(model)], uniform(names(2)), integers=policy)
        for name, value in model.items():
            np.testing.assert_array_equal(result[name], value)


def test_integers_that_differ_can_be_an_error() -> None:
    with pytest.raises(CompatibilityError, match="'n' differs"):
        combine([{"n": np.array(1)}, {"n": np.array(2)}], uniform(names(2)), integers="error")


def test_booleans_that_differ_become_or() -> None:
    result = combine([{"m": np.array([True, False])}, {"m": np.array([False, False])}], uniform(names(2)))
    np.testing.assert_array_equal(result["m"], [True, False])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_ingredient_is_named(bad: float, save: Save) -> None:
    good, other = models(2, np.float32)
    other["a"][7, 3] = bad
    checkpoints = [Checkpoint(save("good", good)), Checkpoint(save("diverged", other))]
    with pytest.raises(CheckpointError, match="diverged: tensor 'a' holds NaN or infinity"):
        combine(checkpoints, uniform(names(2)))
    assert not np.isfinite(combine(checkpoints, uniform(names(2)), non_finite="keep")["a"][7, 3])


def test_masks_of_minus_infinity_pass() -> None:
    mask = np.where(np.triu(np.ones((4, 4))) == 1, -np.inf, 0.0).astype(np.float32)
    for mixture in (uniform(names(2)), weighted(names(2), [2.0, -1.0])):
        np.testing.assert_array_equal(combine([{"mask": mask}, {"mask": mask.copy()}], mixture)["mask"], mask)


def test_an_overflow_of_the_output_dtype_is_named() -> None:
    with pytest.raises(CheckpointError, match="overflows F16"):
        combine([{"w": np.full(3, 1e5, np.float32)}], uniform(names(1)), dtype="F16")


def test_hashes_of_the_stream_are_those_of_the_files(save: Save) -> None:
    ingredients = [Checkpoint(save(f"m{k}", model)) for k, model in enumerate(models(2, np.float32))]
    slots = check_compatible(ingredients).slots
    memory = Memory(slots)
    streamed = stream(ingredients, uniform(names(2)), memory, slots=slots)
    assert streamed.inputs == [content_hash(each) for each in ingredients]
    assert streamed.output == content_hash(memory.tensors)


def test_float32_accumulation_is_close_but_not_exact() -> None:
    ingredients = models(8, np.float32)
    single = combine(ingredients, uniform(names(8)), accumulate="float32")["a"]
    double = combine(ingredients, uniform(names(8)))["a"]
    np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-7)
    assert (single != double).any()


def test_an_error_in_a_thread_stops_the_merge() -> None:
    class Broken(Held):
        def read_into(self, name: str, start: int, out: np.ndarray) -> None:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        combine([Broken(models(1, np.float32)[0])], uniform(names(1)), threads=2)


def test_coefficients_must_be_numbers() -> None:
    from soupkit.errors import RecipeError

    with pytest.raises(RecipeError, match="finite"):
        weighted(names(2), [math.nan, 1.0])
    with pytest.raises(RecipeError, match="1 coefficients for 2"):
        weighted(names(2), [1.0])


def test_a_mixture_survives_json() -> None:
    import json

    mixture = Mixture(("a", "b"), np.array([[0.1, 1 / 3], [0.9, 2 / 3]]), 3.0, {"x": 1})
    again = Mixture.from_json(json.loads(json.dumps(mixture.to_json())))
    assert again.coefficients.tobytes() == mixture.coefficients.tobytes()
    assert (again.ingredients, again.divisor, again.blocks) == (
        mixture.ingredients,
        mixture.divisor,
        mixture.blocks,
    )
