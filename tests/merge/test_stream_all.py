"""Several mixtures from one read: the bits of each alone, every input byte read once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint.held import Held

from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.hashing import BLOCK, content_hash
from soupkit.errors import CheckpointError
from soupkit.merge.memory import Memory
from soupkit.merge.mixture import Mixture, interpolate, keep_batch_norm, uniform, weighted
from soupkit.merge.stream import stream, stream_all
from soupkit.merge.writer import StreamOptions

NAMES = ("c", "a", "d", "b")


def models(dtype: Any) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            "w": (rng.normal(size=BLOCK + 70_000) * 10.0 ** rng.integers(-6, 6)).astype(dtype),
            "z": np.array([-0.0, 0.0, 1.0]).astype(dtype),
            "bn.running_var": rng.random(5).astype(dtype),
            "bn.num_batches_tracked": np.array(k),
        }
        for k in range(4)
    ]


def mixtures() -> list[Mixture]:
    some = [
        uniform(NAMES),
        weighted(NAMES, [0.1, 0.2, 0.3, 0.4]),
        weighted(NAMES, [0, -0.5, 1.5, 0]),
        weighted(NAMES, [0, 1, 1, 0]),
        weighted(NAMES, [0, 0, 0, 1]),
    ]
    return [*some, keep_batch_norm(some[1], 3, models(np.float32)[0])]


@pytest.mark.parametrize("accumulate", ["float64", "float32"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_each_has_the_bits_that_it_has_alone(dtype: Any, accumulate: Any) -> None:
    ingredients = models(dtype)
    slots = check_compatible(ingredients).slots
    for threads in (1, 3):
        options = StreamOptions(threads=threads, accumulate=accumulate)
        together = [Memory(slots) for _ in mixtures()]
        found = stream_all(
            ingredients, list(zip(mixtures(), together, strict=True)), slots=slots, options=options
        )
        for mixture, memory, streamed in zip(mixtures(), together, found):
            rows, alone = mixture.used(), Memory(slots)
            one = stream(
                [ingredients[k] for k in rows], mixture.select(rows), alone, slots=slots, options=options
            )
            for name, tensor in alone.tensors.items():
                assert memory.tensors[name].tobytes() == tensor.tobytes(), name
            assert streamed.output == one.output
            assert streamed.inputs == [content_hash(each) for each in ingredients]
            assert streamed.differing_integers == one.differing_integers


def test_every_weight_is_read_once() -> None:
    read: Counter[tuple[str, str]] = Counter()

    class Counting(Held):
        def read_into(self, name: str, start: int, out: np.ndarray) -> None:
            read[self.reference, name] += out.size
            super().read_into(name, start, out)

    ingredients = [Counting(each, name) for each, name in zip(models(np.float32), NAMES)]
    slots = check_compatible(ingredients).slots
    stream_all(ingredients, [(mixture, Memory(slots)) for mixture in mixtures()], slots=slots)
    assert {read[name, "w"] for name in NAMES} == {BLOCK + 70_000}


def test_a_checkpoint_that_diverged_harms_only_who_takes_it() -> None:
    good, bad = {"w": np.ones(4, np.float32)}, {"w": np.full(4, np.nan, np.float32)}
    slots = check_compatible([good, bad]).slots
    memory = Memory(slots)
    stream_all([good, bad], [(interpolate("a", "b", 0.0), memory)] * 2, slots=slots)
    np.testing.assert_array_equal(memory.tensors["w"], good["w"])
    with pytest.raises(CheckpointError, match="NaN"):
        stream_all(
            [good, bad], [(interpolate("a", "b", at), Memory(slots)) for at in (0.0, 0.5)], slots=slots
        )
