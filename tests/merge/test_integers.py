"""Integers are settled per tensor: whatever the engine, the chunks, the threads or the shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit import api
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.hashing import BLOCK, content_hash
from soupkit.errors import CompatibilityError
from soupkit.merge.integers import CHUNK
from soupkit.merge.memory import Memory
from soupkit.merge.methods import all_methods
from soupkit.merge.mixture import uniform, weighted
from soupkit.merge.per_tensor import Inputs, merge_tensors
from soupkit.merge.stream import stream
from soupkit.merge.writer import Streamed, StreamOptions

METHODS = all_methods()
Save = Callable[..., Path]
Tensors = Mapping[str, np.ndarray]
Engine = Callable[..., tuple[Tensors, Streamed]]


def linear(models: list[Any], **options: Any) -> tuple[Tensors, Streamed]:
    slots = check_compatible(models).slots
    memory = Memory(slots)
    names = [f"m{k}" for k in range(len(models))]
    return memory.tensors, stream(
        models, uniform(names), memory, slots=slots, options=StreamOptions(**options)
    )


def by_method(models: list[Any], **options: Any) -> tuple[Tensors, Streamed]:
    slots = check_compatible(models).slots
    memory = Memory(slots)
    method, given = METHODS["multislerp"], {"weight": np.ones(len(models))}
    options.pop("chunk", None)
    return memory.tensors, merge_tensors(
        Inputs(models), method, lambda _: dict(given), memory, slots=slots, options=StreamOptions(**options)
    )


ENGINES = pytest.mark.parametrize("engine", [linear, by_method])


@ENGINES
@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, BLOCK + 3])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_zero_is_zero_everywhere(engine: Engine, size: int, dtype: Any) -> None:
    for place in {0, size - 1}:
        a = {"ids": np.ones(size, dtype), "same": np.ones(size, dtype)}
        b = {"ids": a["ids"].copy(), "same": a["same"].copy()}
        b["ids"][place] = 0
        for threads in (1, 2):
            tensors, streamed = engine([a, b], integers="zero", threads=threads)
            assert not tensors["ids"].any()
            assert tensors["same"].all()
            assert streamed.differing_integers == ["ids"]
            assert streamed.output == content_hash(tensors)


@pytest.mark.parametrize("chunk", [1 << 12, CHUNK, 1 << 17])
def test_chunks_of_the_linear_engine_decide_nothing(chunk: int) -> None:
    a = {"ids": np.arange(1, 200_001)}
    b = {"ids": a["ids"].copy()}
    b["ids"][5] = 7_000_000
    assert not linear([a, b], integers="zero", chunk=chunk)[0]["ids"].any()


@ENGINES
def test_hashes_are_those_of_the_files(engine: Engine, save: Save) -> None:
    models = [{"ids": np.arange(BLOCK + 7) + k, "none": np.empty(0, np.int32)} for k in range(3)]
    stored = [Checkpoint(save(str(k), model)) for k, model in enumerate(models)]
    for policy in ("auto", "first", "max", "zero"):
        tensors, streamed = engine(stored, integers=policy)
        assert streamed.inputs == [content_hash(each) for each in stored]
        assert streamed.output == content_hash(tensors)


@ENGINES
@pytest.mark.parametrize(
    ("values", "counter"),
    [
        (np.array(3), True),
        (np.array([[3]]), True),
        (np.array([3, 1]), True),
        (np.array([True, False]), True),
        (np.array([[3, 1]]), False),
        (np.array([[[1], [2]]], np.int32), False),
        (np.array([3, 1], np.uint8), False),
        (np.array([3, 1], np.int8), False),
        (np.array([[True, False]]), False),
    ],
)
def test_only_counters_take_the_largest_unasked(engine: Engine, values: np.ndarray, counter: bool) -> None:
    other = ~values if values.dtype == np.bool_ else (values + 1).astype(values.dtype)
    models = [{"n": values}, {"n": other}]
    if counter:
        assert (engine(models)[0]["n"] == np.maximum(values, other)).all()
    else:
        with pytest.raises(
            CompatibilityError, match=r"ingredient 1: integer tensor 'n' differs .*have no mean"
        ):
            engine(models)
    assert (engine(models, integers="first")[0]["n"] == values).all()
    assert (engine([{"n": values}, {"n": values.copy()}])[0]["n"] == values).all()


def test_a_base_with_other_codes_is_told_of() -> None:
    """With one ingredient its codes would be written beside weights that are half the base's."""
    model, base = {"n": np.array([[1, 2]])}, {"n": np.array([[1, 3]])}
    slots = check_compatible([model, base]).slots

    def merge(**options: Any) -> Tensors:
        memory = Memory(slots)
        given = {"weight": np.ones(1), "normalize": False}
        method, chosen = METHODS["task-arithmetic"], StreamOptions(**options)
        merge_tensors(
            Inputs([model], base), method, lambda _: dict(given), memory, slots=slots, options=chosen
        )
        return memory.tensors

    with pytest.raises(CompatibilityError, match=r"ingredient 1: integer tensor 'n' differs"):
        merge()
    assert merge(integers="max")["n"].tolist() == [[1, 2]]


def test_a_model_that_is_not_used_has_no_say() -> None:
    models = [{"n": np.array([[k]] * 2)} for k in range(2)]
    slots = check_compatible(models).slots
    memory = Memory(slots)
    stream(models, weighted(["a", "b"], [0, 1]), memory, slots=slots)
    assert memory.tensors["n"].tolist() == [[1], [1]]


def test_the_library_refuses_codes_too() -> None:
    models = [{"codes": np.full((4, 2), k, np.int32)} for k in range(2)]
    with pytest.raises(CompatibilityError, match="'codes' differs"):
        api.combine(models, uniform(["a", "b"]))
