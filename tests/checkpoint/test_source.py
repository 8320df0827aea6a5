"""Every source, views and a fake in memory among them, is what `Source` says: one test for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from align.hand_made import gathered, mlp, weights
from checkpoint.held import Held

from soupkit.align.permutation import random_permutation
from soupkit.align.permuted import Permuted
from soupkit.align.turns.turn import Turn
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.companions import Reconfigured
from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.source import Source
from soupkit.checkpoint.tensors import write_tensors
from soupkit.checkpoint.views.adapted import Adapted, Adapter, Factors
from soupkit.checkpoint.views.dequantized import Dequantized
from soupkit.checkpoint.views.resized import Resized
from soupkit.checkpoint.views.stacked import Part, Stacked
from soupkit.stages.inputs.turned import Turned

Tensors = dict[str, Array]
SPEC = mlp(3, 4, 5, 2)
ORDER = random_permutation(SPEC, 1)
B, A = np.ones((4, 1), np.float32), np.ones((1, 3), np.float32)


def written(tensors: Tensors, directory: Path) -> Checkpoint:
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "toy"}')
    write_tensors(directory, tensors)
    return Checkpoint(directory)


def adapted(base: Source, tensors: Tensors, directory: Path) -> tuple[Source, Tensors]:
    own = written({"b": np.float32([7])}, directory / "adapter")
    view = Adapted(base, Adapter("adapter", "", own, {"0.weight": Factors(A, B, 2.0)}, {}))
    return view, {**tensors, "0.weight": tensors["0.weight"] + 2}


def dequantized(base: Source, tensors: Tensors, directory: Path) -> tuple[Source, Tensors]:
    codes = {"w": np.arange(6).reshape(2, 3).astype(ml_dtypes.float8_e4m3fn), "w_scale": np.float32([2, 3])}
    plain = {name: values for name, values in tensors.items() if name == "0.bias"}
    view = Dequantized(written({**codes, **plain}, directory / "codes"))
    return view, {**plain, "w": np.float32([[0, 2, 4], [9, 12, 15]])}


def stacked(base: Source, tensors: Tensors, _directory: Path) -> tuple[Source, Tensors]:
    layers = {f"h.{layer}.w": tensors["0.bias"] * layer for layer in range(3)}
    deep = Held(layers)
    return Stacked([Part(deep, 1, 2), Part(deep, 1, 3)], reference="deep"), {
        "h.0.w": layers["h.1.w"], "h.1.w": layers["h.1.w"], "h.2.w": layers["h.2.w"]
    }  # fmt: skip


def resized(base: Source, tensors: Tensors, _directory: Path) -> tuple[Source, Tensors]:
    return Resized(base, ["0.bias"], 3, base), {**tensors, "0.bias": tensors["0.bias"][:3]}


SOURCES: Mapping[str, Callable[[Source, Tensors, Path], tuple[Source, Tensors]]] = {
    "in memory": lambda _base, tensors, _directory: (Held(tensors), tensors),
    "checkpoint": lambda base, tensors, _directory: (base, tensors),
    "reconfigured": lambda base, tensors, _directory: (Reconfigured(base, {"model_type": "other"}), tensors),
    "permuted": lambda base, tensors, _directory: (
        Permuted(base, SPEC, ORDER),
        gathered(SPEC, tensors, ORDER),
    ),
    "turned": lambda base, tensors, _: (
        Turned(base, SPEC, (), ORDER, Turn()),
        gathered(SPEC, tensors, ORDER),
    ),
    "adapted": adapted,
    "dequantized": dequantized,
    "stacked": stacked,
    "resized": resized,
}


def made(kind: str, seed: int, directory: Path) -> tuple[Source, Tensors]:
    directory.mkdir()
    tensors = weights(SPEC, seed)
    return SOURCES[kind](written(tensors, directory / "base"), tensors, directory)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_is_what_it_says(kind: str, tmp_path: Path) -> None:
    source, expected = made(kind, 0, tmp_path / "one")
    assert set(source) == set(source.slots) == set(expected)
    assert source.num_bytes == sum(values.nbytes for values in expected.values())
    for name, values in expected.items():
        slot = source.slots[name]
        assert (slot.shape, NUMPY_DTYPES[slot.dtype]) == (values.shape, values.dtype)
        assert source[name].tobytes() == values.tobytes()
        for start, stop in ((0, 1), (1, values.size), (2, 2)):
            part = np.empty(stop - start, values.dtype)
            source.read_into(name, start, part)
            assert part.tobytes() == values.reshape(-1)[start:stop].tobytes()
    assert source.reference in repr(source)
    assert all(path.is_file() for path in (*source.files, *source.companions))
    assert all(name in source for name in source.ties)
    json.dumps([source.record(), dict(source.config)])


@pytest.mark.parametrize("kind", SOURCES)
def test_an_identity_is_of_the_content(kind: str, tmp_path: Path) -> None:
    (source, tensors), (again, _), (other, _) = (
        made(kind, seed, tmp_path / name) for seed, name in ((0, "one"), (0, "two"), (1, "three"))
    )
    assert source.identity() == again.identity() == content_hash(tensors)
    assert source.identity() != other.identity()
