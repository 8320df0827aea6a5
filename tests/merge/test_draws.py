"""Random selection: exactly so many, the right ones, in strata, and from streams that never change."""

from __future__ import annotations

import numpy as np
import pytest

from soupkit.merge.families.dare import Quota, lowest
from soupkit.merge.families.della import _by_rank
from soupkit.merge.pieces import Draws, uniform_bits


def by_sorting(keys: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(keys.size, np.bool_)
    mask[np.argsort(keys, kind="stable")[:count]] = True
    return mask


@pytest.mark.parametrize("size", [1, 2, 30, 5000, 32768])
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("kind", ["uniform", "skewed", "ties", "constant", "sorted", "odds"])
def test_the_lowest_keys_are_those_of_a_stable_sort(size: int, share: float, kind: str) -> None:
    rng = np.random.default_rng(0)
    uniform = rng.integers(0, 2**32, size=size, dtype=np.uint32)
    keys = {
        "uniform": uniform,
        "skewed": (rng.random(size) ** 20 * 2**32).astype(np.uint32),  # not what the window expects
        "ties": (uniform >> np.uint32(28)).astype(np.uint32),
        "constant": np.full(size, 7, np.uint32),
        "sorted": np.sort(rng.normal(size=size)),
        "odds": rng.random(size) / (1 - rng.random(size)),
    }[kind]
    for count in {int(share * size), min(size, int(share * size) + 1)}:
        np.testing.assert_array_equal(lowest(keys, count), by_sorting(keys, count))


@pytest.mark.parametrize(("count", "size"), [(1, 100), (37, 100), (100, 100), (12_345, 100_000)])
def test_quotas_add_up_and_are_even(count: int, size: int) -> None:
    for seed in range(20):
        quota = Quota(count, size, Draws(seed, "w").stream(0))
        parts = [quota.of(min(7, size - start)) for start in range(0, size, 7)]
        assert sum(parts) == count
        assert max(parts) - min(parts[:-1] or parts) <= 1


def test_every_stratum_gets_its_share_on_average() -> None:
    first = [Quota(3, 10, Draws(seed, "w").stream(0)).of(5) for seed in range(4000)]
    assert np.mean(first) == pytest.approx(1.5, abs=0.05)


def test_streams_are_what_they_were() -> None:
    """Manifests promise the same bits for the same seed: these numbers must never change."""
    bits = uniform_bits(Draws(7, "layers.0.weight").stream(3), 5)
    np.testing.assert_array_equal(bits, RECORDED)
    assert not np.array_equal(bits, uniform_bits(Draws(7, "layers.0.weight").stream(2), 5))
    assert not np.array_equal(bits, uniform_bits(Draws(8, "layers.0.weight").stream(3), 5))


RECORDED = [1125452356, 897251560, 1392556182, 1118225293, 1417905368]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 300)])
def test_ranks_are_those_of_a_stable_sort_by_magnitude(shape: tuple[int, int]) -> None:
    rows = np.round(np.random.default_rng(0).normal(size=shape), 1)
    expected = np.argsort(np.abs(rows), axis=1, kind="stable") + np.arange(shape[0])[:, None] * shape[1]
    np.testing.assert_array_equal(_by_rank(rows), expected)
