"""Greedy over blocks against a search that is written out, on a score that is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soupkit.merge.mixture import Mixture
from soupkit.soup.greedy import Bar, greedy
from soupkit.soup.greedy_blocks import greedy_by_block
from soupkit.task.score import Score

NAMES = ("a", "b", "c", "d")


def scorer(points_KB: np.ndarray, target_B: np.ndarray):  # type: ignore[no-untyped-def]
    """−Σ_b (soup_b − target_b)² of models that are one number per block."""

    def score(mixture: Mixture, _bar: Bar | None) -> Score:
        soup_B = (mixture.matrix * points_KB).sum(0)
        return Score("closeness", -float(((soup_B - target_B) ** 2).sum()), None, None)

    return score


def mix(coefficients_KB: np.ndarray) -> Mixture:
    return Mixture(NAMES, coefficients_KB, 1.0, {f"t{b}": b for b in range(coefficients_KB.shape[1])})


def written_out(points_KB: np.ndarray, target_B: np.ndarray) -> list[list[int]]:
    """The picks of each block, without any of the code under test."""
    value = lambda picks: -sum((points_KB[own, b].mean() - target_B[b]) ** 2 for b, own in enumerate(picks))  # noqa: E731
    blocks = range(points_KB.shape[1])
    singles = [value([[k] for _ in blocks]) for k in range(len(points_KB))]
    ranking = sorted(range(len(points_KB)), key=lambda k: (-singles[k], NAMES[k]))
    picks = [[ranking[0]] for _ in blocks]
    for k in ranking[1:]:
        for b in blocks:
            tried = [[*own, k] if number == b else own for number, own in enumerate(picks)]
            if value(tried) >= value(picks):
                picks = tried
    return picks


@given(
    st.lists(st.integers(-8, 8), min_size=12, max_size=12),
    st.lists(st.integers(-8, 8), min_size=3, max_size=3),
)
def test_the_picks_of_every_block_are_those_of_the_search_written_out(
    points: list[int], target: list[int]
) -> None:
    points_KB, target_B = (
        12.0 * np.array(points).reshape(4, 3),
        np.array(target, float),
    )  # so that means are exact
    found = greedy_by_block(NAMES, scorer(points_KB, target_B), ("x", "y", "z"), mix=mix)
    expected = np.zeros((4, 3))
    for b, own in enumerate(written_out(points_KB, target_B)):
        expected[own, b] = 1 / len(own)
    np.testing.assert_allclose(found.mixture.matrix, expected)
    np.testing.assert_allclose(found.mixture.matrix.sum(0), 1)
    assert len(found.trials) == 3 * 3


def test_blocks_may_take_different_ingredients() -> None:
    points_KB = np.array([[1.0, 1.0], [-1.0, 5.0], [9.0, -1.0], [9.0, 9.0]])
    found = greedy_by_block(NAMES, scorer(points_KB, np.zeros(2)), ("x", "y"), mix=mix)
    np.testing.assert_allclose(found.mixture.matrix[:, 0], [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(found.mixture.matrix[:, 1], [0.5, 0, 0.5, 0])
    assert {trial.block for trial in found.trials if trial.accepted} == {"x", "y"}


@pytest.mark.parametrize("accept", ["ge", "gt"])
def test_one_block_is_the_greedy_soup(accept: str) -> None:
    points_KB = np.array([[2.0], [-2.0], [1.0], [2.0]])
    score = scorer(points_KB, np.zeros(1))
    one = greedy_by_block(NAMES, score, ("all",), mix=mix, accept=accept)  # type: ignore[arg-type]
    plain = greedy(NAMES, score, accept=accept)  # type: ignore[arg-type]
    np.testing.assert_allclose(one.mixture.matrix, plain.mixture.matrix)
