"""Laws of merging, for every method that claims them, through the engine that users run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.hashing import content_hash
from soupkit.merge.methods import all_methods
from soupkit.merge.per_tensor import Inputs, merge_tensors
from soupkit.merge.pieces import STRATUM
from soupkit.merge.writer import Streamed, StreamOptions

METHODS = all_methods()
Tensors = dict[str, np.ndarray]
Save = Callable[..., Path]

# density 1 and normalized, where a law needs all entries and a mean
GENTLE: dict[str, float] = {
    "density": 1.0,
    "normalize": 1.0,
    "gamma": 0.0,
    "epsilon": 0.0,
    "lambda": 1.0,
    "t": 0.25,
}
SPARSE: dict[str, float] = {"density": 0.3, "gamma": 0.05, "epsilon": 0.2, "lambda": 0.7, "t": 0.25}
OTHERS: dict[str, float] = {
    "weight": 1.0, "rows": 0, "rescale": 1, "normalize": 0, "task": 1, "threshold": 0.4, "agree": 2,
    "fence": 1.5,
    "iterations": 50, "tolerance": 1e-9, "floor": 1e-6, "shrink": 0.9, "scale": 1.0,
    "max_side": 600, "common": 0.8, "gain": 0.1, "clip": 0.2, "lr": 1e-5,
}  # fmt: skip
ALL = list(METHODS)
ON_BASE = [name for name, method in METHODS.items() if method.base == "required"]
ORDERED = ("slerp", "tall-mask", "emr", "fusion")
ANY_ORDER = [name for name, method in METHODS.items() if not (name in ORDERED or "draws" in method.asks)]
# Not among them: what scales with the number of models or changes a spectrum.
IDENTITY = [name for name in ALL if name not in ("tall-mask", "tsv-m", "iso-c", "iso-cts", "wudi")]


class Memory:
    """A sink that keeps what it is given."""

    def __init__(self, slots: Mapping[str, Any]) -> None:
        from soupkit.checkpoint.dtypes import NUMPY_DTYPES

        self.tensors = {name: np.empty(slot.shape, NUMPY_DTYPES[slot.dtype]) for name, slot in slots.items()}

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        self.tensors[name].reshape(-1)[start : start + values.size] = values


def merge(
    name: str,
    models: Sequence[Any],
    base: Any = None,
    *,
    values: Mapping[str, float] = SPARSE,
    weight: Any = None,
    **options: Any,
) -> tuple[Tensors, Streamed]:
    method = METHODS[name]
    slots = check_compatible([*models, *([base] if base is not None else [])]).slots
    numbers = OTHERS | dict(values)

    def parameters(_: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, parameter in method.parameters.items():
            number = weight if key == "weight" and weight is not None else numbers[key]
            found[key] = (
                np.broadcast_to(np.asarray(number, float), len(models))
                if parameter.per_ingredient
                else parameter.kind(number)
            )
        return found

    memory = Memory(slots)
    seed = options.pop("seed", 0)
    streamed = merge_tensors(
        Inputs(models, base),
        method,
        parameters,
        memory,
        slots=slots,
        seed=seed,
        options=StreamOptions(**options),
    )
    return memory.tensors, streamed


def model(seed: int, *, dtype: Any = np.float32, around: Tensors | None = None) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "layers.0.w": (70, 500), "layers.1.w": (30, 11), "conv": (4, 3, 2, 2),
        "b": (5,), "scale": (), "none": (0, 3), "one": (1,),
    }  # fmt: skip
    noise = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    if around is None:
        return {name: np.asarray(value, dtype) for name, value in noise.items()}
    return {name: np.asarray(around[name] + 0.1 * value, dtype) for name, value in noise.items()}


BASE = model(0)
MODELS = [model(seed, around=BASE) for seed in (1, 2, 3)]


def inputs_of(name: str, models: Sequence[Tensors] = MODELS) -> tuple[list[Tensors], Tensors | None]:
    """As many models as the method takes, and the base if it wants one."""
    most = METHODS[name].inputs[1]
    return list(models[:most] if most else models), (BASE if name in ON_BASE else None)


def assert_same(a: Tensors, b: Tensors, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        if rtol or atol:
            np.testing.assert_allclose(
                a[name].astype(float), b[name].astype(float), rtol=rtol, atol=atol, err_msg=name
            )
        else:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("name", IDENTITY)
def test_identical_models_give_themselves(name: str) -> None:
    copies = [
        {key: value.copy() for key, value in MODELS[0].items()} for _ in range(METHODS[name].inputs[1] or 3)
    ]
    base = BASE if name in ON_BASE else None
    values = GENTLE | ({"t": 10.0} if name == "nearswap" else {})
    merged, _ = merge(name, copies, base, values=values)
    assert_same(merged, MODELS[0], rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("name", ON_BASE)
def test_zero_task_vectors_give_the_base(name: str) -> None:
    models, base = inputs_of(name, [{key: value.copy() for key, value in BASE.items()} for _ in range(3)])
    merged, _ = merge(name, models, base)
    assert_same(merged, BASE)


@pytest.mark.parametrize("name", ON_BASE)
def test_lambda_zero_gives_the_base_and_lambda_scales(name: str) -> None:
    models, base = inputs_of(name)
    assert_same(merge(name, models, base, values=SPARSE | {"lambda": 0.0})[0], BASE)
    once, _ = merge(name, models, base, values=SPARSE | {"lambda": 1.0})
    twice, _ = merge(name, models, base, values=SPARSE | {"lambda": 2.0})
    doubled = {key: BASE[key] + 2.0 * (once[key].astype(float) - BASE[key]) for key in BASE}
    assert_same(twice, doubled, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
def test_shapes_and_dtypes_are_kept(name: str, dtype: Any) -> None:
    base = model(0, dtype=dtype)
    models = [
        model(seed, dtype=dtype, around={key: value.astype(float) for key, value in base.items()})
        for seed in (1, 2, 3)
    ]
    chosen, _ = inputs_of(name, models)
    merged, _ = merge(name, chosen, base if name in ON_BASE else None)
    assert {key: (value.dtype, value.shape) for key, value in merged.items()} == {
        key: (value.dtype, value.shape) for key, value in base.items()
    }


@pytest.mark.parametrize("name", ALL)
def test_low_precision_inputs_lose_nothing_but_the_last_rounding(name: str) -> None:
    """A merge of bfloat16 models is the merge of the same values in float32, rounded once."""
    narrow = [
        {key: value.astype(ml_dtypes.bfloat16) for key, value in each.items()} for each in (BASE, *MODELS)
    ]
    wide = [{key: value.astype(np.float32) for key, value in each.items()} for each in narrow]
    models, base = inputs_of(name, narrow[1:])
    wide_models, _ = inputs_of(name, wide[1:])
    merged, _ = merge(name, models, narrow[0] if base is not None else None)
    expected, _ = merge(name, wide_models, wide[0] if base is not None else None)
    for key, value in merged.items():
        np.testing.assert_allclose(value.astype(float), expected[key].astype(float), rtol=2.0**-8, atol=1e-30)


@pytest.mark.parametrize("name", ANY_ORDER)
def test_order_does_not_matter(name: str) -> None:
    models, base = inputs_of(name)
    weight = np.array([0.5, 0.3, 0.2])[: len(models)]
    order = list(range(len(models)))[::-1]
    forward, _ = merge(name, models, base, weight=weight)
    backward, _ = merge(name, [models[k] for k in order], base, weight=weight[order])
    assert_same(forward, backward, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_same_bits_under_any_threads_and_shards(name: str, save: Save, tmp_path: Path) -> None:
    models, base = inputs_of(name)
    expected, streamed = merge(name, models, base, threads=1, seed=7)
    stored = [
        Checkpoint(save(f"{k}", each, max_shard_bytes=20_000 * (k % 2)))
        for k, each in enumerate([*models, *([base] if base else [])])
    ]
    merged, again = merge(name, stored[: len(models)], stored[-1] if base else None, threads=3, seed=7)
    assert_same(merged, expected)
    assert again == streamed
    assert again.inputs == [content_hash(each) for each in stored]
    assert again.output == content_hash(merged)


@pytest.mark.parametrize("name", [name for name in ALL if "draws" in METHODS[name].asks])
def test_another_seed_gives_other_bits(name: str) -> None:
    models, base = inputs_of(name)
    first, _ = merge(name, models, base, seed=1)
    second, _ = merge(name, models, base, seed=2)
    assert not np.array_equal(first["layers.0.w"], second["layers.0.w"])


@pytest.mark.parametrize("name", ALL)
def test_a_large_tensor_is_merged_in_pieces_as_a_whole(name: str) -> None:
    """A tensor of several pieces and its first piece alone, where the method looks at entries or rows by
    themselves."""
    if METHODS[name].pieces == "tensor":
        pytest.skip("reads whole tensors")
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(2 * STRATUM // 64 + 3, 64)).astype(np.float32)}
    models = [
        {"w": (base["w"] + 0.1 * rng.normal(size=base["w"].shape)).astype(np.float32)} for _ in range(3)
    ]
    chosen, _ = inputs_of(name, models)
    merged, streamed = merge(name, chosen, base if name in ON_BASE else None)
    assert np.isfinite(merged["w"]).all()
    assert streamed.output == content_hash(merged)
    assert not np.array_equal(merged["w"], base["w"])


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_slerp_ends_at_its_ends(t: float) -> None:
    merged, _ = merge("slerp", MODELS[:2], values={"t": t})
    assert_same(merged, MODELS[int(t)], rtol=1e-7)


SPAN = ["slerp", "nuslerp", "multislerp", "karcher"]


@pytest.mark.parametrize("name", SPAN)
def test_spherical_merges_scale_with_their_inputs(name: str) -> None:
    """Twice the inputs, twice the merge: the coefficients depend on angles alone."""
    models, _ = inputs_of(name)
    doubled = [{key: 2 * value for key, value in each.items()} for each in models]
    merged, _ = merge(name, models)
    assert_same({key: 2 * value for key, value in merged.items()}, merge(name, doubled)[0], rtol=1e-6)


@pytest.mark.parametrize("name", [*SPAN[1:], "model-stock"])
def test_rotating_the_inputs_rotates_the_merge(name: str) -> None:
    """What depends on inner products alone does not see a change of basis."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(11, 11)))[0]
    models, base = inputs_of(name, [{"w": each["layers.1.w"].astype(float)} for each in MODELS])
    zero = {"w": BASE["layers.1.w"].astype(float)} if base is not None else None
    turned = [{"w": each["w"] @ rotation} for each in models]
    merged, _ = merge(name, models, zero)
    rotated, _ = merge(name, turned, {"w": zero["w"] @ rotation} if zero else None)
    np.testing.assert_allclose(merged["w"] @ rotation, rotated["w"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher"])
def test_an_optional_base_moves_the_origin(name: str) -> None:
    """With a base, the merge is base + the merge of the differences."""
    models, _ = inputs_of(
        name, [{key: value.astype(float) for key, value in each.items()} for each in MODELS]
    )
    base = {key: value.astype(float) for key, value in BASE.items()}
    differences = [{key: each[key] - base[key] for key in base} for each in models]
    merged, _ = merge(name, models, base)
    alone, _ = merge(name, differences)
    assert_same(merged, {key: base[key] + alone[key] for key in base}, rtol=1e-12, atol=1e-14)
