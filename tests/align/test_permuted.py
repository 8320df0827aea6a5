"""A permuted view gives the same bits as gathers in numpy, whoever reads it and in whatever pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from align.hand_made import attention, dense, gathered, mlp, weights
from checkpoint.held import Held

from soupkit.align import permuted as permuted_module
from soupkit.align.permutation import identity, inverse, random_permutation
from soupkit.align.permuted import Permuted
from soupkit.align.spec import PermutationSpec
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.source import read_chunk, slots_of
from soupkit.merge.memory import Memory
from soupkit.merge.mixture import uniform
from soupkit.merge.stream import stream
from soupkit.merge.writer import StreamOptions

SPECS = {"mlp": mlp(5, 7, 6, 3), "attention": attention(12, 3, 4), "dense": dense(4)}
Save = Callable[..., Path]


@pytest.fixture(params=["small tensors whole", "row by row"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of reading, at sizes of a test."""
    if request.param == "row by row":
        monkeypatch.setattr(permuted_module, "SMALL", 0)
        monkeypatch.setattr(permuted_module, "SHORT_ROW", 1)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32])
@pytest.mark.parametrize("name", SPECS)
def test_every_piece_is_that_of_the_gathered_tensor(name: str, dtype: type, save: Save) -> None:
    spec = SPECS[name]
    tensors = {key: (8 * value).astype(dtype) for key, value in weights(spec, 0).items()}
    permutation = random_permutation(spec, 1)
    expected = gathered(spec, tensors, permutation)
    random = np.random.default_rng(0)
    for source in (tensors, Checkpoint(save(f"{name}-{np.dtype(dtype)}", tensors))):
        view = Permuted(source, spec, permutation)
        assert list(view) == list(source)
        assert slots_of(view) == slots_of(source)
        for key, values in expected.items():
            assert view[key].tobytes() == values.tobytes()
            for _ in range(6):
                start, stop = sorted(random.choice(values.size + 1, 2, replace=False).tolist())
                out = np.empty(stop - start, values.dtype)
                read_chunk(view, key, start, out)
                assert out.tobytes() == values.reshape(-1)[start:stop].tobytes()


@pytest.mark.usefixtures("reading")
def test_a_merge_streams_it(save: Save) -> None:
    """The mean of A and a permuted A, in small chunks on two threads, against numpy."""
    spec = SPECS["attention"]
    a, b = weights(spec, 0), weights(spec, 1)
    permutation = random_permutation(spec, 2)
    view = Permuted(Checkpoint(save("b", b)), spec, permutation)
    slots = slots_of(a)
    memory = Memory(slots)
    stream([a, view], uniform(["a", "b"]), memory, slots=slots, options=StreamOptions(threads=2, chunk=16))
    moved = gathered(spec, b, permutation)
    for name in a:
        mean = (a[name].astype(np.float64) + moved[name]) / 2
        assert np.array_equal(memory.tensors[name], mean.astype(np.float32))


def test_tensors_outside_the_spec_pass_through(save: Save) -> None:
    spec = SPECS["mlp"]
    tensors = {**weights(spec, 0), "counter": np.array(7), "extra": np.arange(5.0)}
    source = Checkpoint(save("extra", tensors))
    view = Permuted(source, spec, random_permutation(spec, 0))
    assert view["counter"] == 7
    assert np.array_equal(view["extra"], np.arange(5.0))
    assert view.reference == source.reference
    assert view.files == source.files
    assert view.companions == source.companions


def test_identity_and_inverse(save: Save) -> None:
    spec = SPECS["attention"]
    source = Checkpoint(save("model", weights(spec, 0)))
    permutation = random_permutation(spec, 3)
    there = Permuted(source, spec, permutation)
    back = Permuted(there, spec, inverse(permutation, spec))
    assert content_hash(there) != content_hash(source)
    assert content_hash(back) == content_hash(source) == content_hash(Permuted(source, spec, identity(spec)))


def test_the_record_tells_the_source_and_only_what_moves(save: Save) -> None:
    spec = SPECS["mlp"]
    source = Checkpoint(save("model", weights(spec, 0)))
    order = np.array([1, 0, 2, 3, 4, 5, 6])
    record = Permuted(source, spec, {**identity(spec), "hidden1": order}).record()
    assert record == {
        **source.record(),
        "content": content_hash(source),
        "permutation": {"hidden1": "1 0 2 3 4 5 6"},
    }


def test_a_large_tensor_is_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, the source is asked for one row at a time."""
    monkeypatch.setattr(permuted_module, "SMALL", 0)
    monkeypatch.setattr(permuted_module, "SHORT_ROW", 1)
    spec: PermutationSpec = SPECS["mlp"]
    sizes = []

    class Watched(Held):
        def read_into(self, name: str, start: int, out: np.ndarray) -> None:
            sizes.append(out.size)
            super().read_into(name, start, out)

    view = Permuted(Watched(weights(spec, 0)), spec, random_permutation(spec, 1))
    view.read_into("1.weight", 7, np.empty(35, np.float32))
    assert sizes == [7] * 5
