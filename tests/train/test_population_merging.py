"""The coefficients of children: their laws, and that what is called random is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare
from train.population_small import population_recipe

from soupkit.errors import RecipeError
from soupkit.task.randomness import Stream
from soupkit.train.population.merging import generation, merges_after, mixing_matrix, pull_strength, survivors

METHODS = ("papa-all", "papa-2", "pair-75", "many-half", "many-75", "random")


def drawn(method: str, n: int, seed: int, **options: object) -> np.ndarray:
    return mixing_matrix(method, n, np.random.default_rng(seed), **options)


@given(st.sampled_from(METHODS), st.integers(1, 12), st.integers(0, 1000))
def test_coefficients_are_shares(method: str, n: int, seed: int) -> None:
    matrix = drawn(method, n, seed)
    assert matrix.shape == (n, n)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(matrix, drawn(method, n, seed))


def test_the_matrices_of_the_paper() -> None:
    np.testing.assert_array_equal(drawn("papa-all", 4, 0), np.full((4, 4), 0.25))
    np.testing.assert_array_equal(
        drawn("many-half", 3, 0), [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
    )
    np.testing.assert_allclose(drawn("many-75", 6, 0), np.full((6, 6), 0.05) + np.eye(6) * 0.7)


@pytest.mark.parametrize(("method", "shares"), [("papa-2", (0.5, 0.5)), ("pair-75", (0.25, 0.75))])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_pairs_are_of_two_different_parents_and_differ(
    method: str, shares: tuple[float, float], n: int
) -> None:
    for seed in range(50):
        matrix = drawn(method, n, seed)
        assert all(tuple(sorted(row[row > 0])) == shares for row in matrix)
        if n > 2:
            assert len({tuple(np.flatnonzero(row)) for row in matrix}) == n


def pair_counts(matrices: list[np.ndarray], n: int) -> np.ndarray:
    """How often each of the C(n, 2) pairs was drawn."""
    counts = dict.fromkeys(combinations(range(n), 2), 0)
    for matrix in matrices:
        for row in matrix:
            counts[tuple(np.flatnonzero(row).tolist())] += 1
    return np.array(list(counts.values()))


def first_pairs(n: int) -> np.ndarray:
    """The published code's pairs: the first n in lexicographic order, shuffled."""
    matrix = np.zeros((n, n))
    for row, pair in enumerate(list(combinations(range(n), 2))[:n]):
        matrix[row, list(pair)] = 0.5
    return matrix


@pytest.mark.parametrize("n", [4, 5, 10])
def test_pairs_are_uniform(n: int) -> None:
    """Chi-square over all C(n, 2) pairs; the same test finds that the first n lexicographic pairs are not
    uniform."""
    num = 1500
    randoms = [np.random.default_rng([1, Stream.MERGING, epoch]) for epoch in range(num)]  # as in training
    counts = pair_counts([mixing_matrix("papa-2", n, random) for random in randoms], n)
    # pairs of one draw are different, so counts vary less than independent ones: by the finite population
    # factor
    num_pairs = n * (n - 1) // 2
    factor = (num_pairs - n) / (num_pairs - 1)
    statistic = chisquare(counts).statistic / factor
    assert 1e-3 < chi2.sf(statistic, num_pairs - 1) < 1 - 1e-3
    assert chisquare(pair_counts([first_pairs(n)] * num, n)).pvalue < 1e-9


def test_the_larger_share_goes_to_either_parent_equally() -> None:
    firsts = [
        int(np.argmax(row) < np.flatnonzero(row)[-1]) for s in range(400) for row in drawn("pair-75", 5, s)
    ]
    assert abs(np.mean(firsts) - 0.5) < 4 * 0.5 / np.sqrt(len(firsts))


def test_random_rows_are_from_the_flat_dirichlet() -> None:
    rows = np.concatenate([drawn("random", 4, seed) for seed in range(2000)])
    np.testing.assert_allclose(rows.mean(0), 0.25, atol=0.01)
    np.testing.assert_allclose(rows.var(0), 3 / (16 * 5), rtol=0.06)  # a(A − a)/(A²(A + 1)) with a = 1, A = 4


def test_a_tournament_prefers_the_fit() -> None:
    losses = [0.5, 1.0, 2.0, 4.0]
    counts = pair_counts([drawn("papa-2", 4, seed, losses=losses) for seed in range(1000)], 4)
    p = (1 / (np.array(losses) + 1e-5)) / (1 / (np.array(losses) + 1e-5)).sum()
    expected = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in combinations(range(4), 2)]
    assert chisquare(counts, np.array(expected) * counts.sum()).pvalue > 1e-3
    assert np.isfinite(drawn("papa-2", 3, 0, losses=[float("nan"), float("inf"), float("inf")])).all()


def test_survivors_are_the_elite_and_the_lucky() -> None:
    losses = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0]
    rest = set()
    for seed in range(60):
        chosen = survivors(losses, 5, np.random.default_rng(seed), elitism=0.6)
        assert chosen[:3] == [1, 3, 4]
        assert len(set(chosen)) == 5
        rest |= set(chosen[3:])
    assert rest == {0, 2, 5}
    assert survivors(losses, 3, np.random.default_rng(0), elitism=1.0) == [1, 3, 4]


def test_when_members_are_replaced() -> None:
    def epochs(**values: object) -> list[int]:
        recipe = population_recipe(method="papa-all", **values)
        return [epoch for epoch in range(recipe.epochs) if merges_after(recipe, epoch)]

    assert epochs(epochs=12, merge_every=5) == [0, 5, 10]
    assert epochs(epochs=11, merge_every=5) == [0, 5]  # never after the last
    assert epochs(epochs=12, merge_every=5, merge_first=False) == [5, 10]
    assert epochs(epochs=12, merge_every=1, merge_range=(0.25, 0.5)) == [2, 3, 4, 5]
    assert not any(merges_after(population_recipe(method="papa", epochs=20), epoch) for epoch in range(20))
    assert generation(population_recipe(method="papa-all", epochs=12, merge_every=5), 10) == 3


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.0025), ("sqrt", 0.005), ("none", 0.01)])
def test_the_pull_follows_the_learning_rate(scaling: str, expected: float) -> None:
    assert pull_strength(population_recipe(lr_scaling=scaling), 0.25) == pytest.approx(expected)
    assert pull_strength(population_recipe(lr_scaling=scaling, decay=0.9), 1.0) == pytest.approx(0.1)
    assert pull_strength(population_recipe(lr_scaling=scaling, method="none"), 1.0) == 0
    assert pull_strength(
        population_recipe(lr_scaling=scaling, method="papa-2", decay=0.8), 1.0
    ) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_members": 0}, "num_members is 0"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"async_average": 3}, "less than average_every"),
        ({"merge_range": (0.5, 0.2)}, "merge_range"),
        ({"tournament": True, "method": "papa-all"}, "papa-all has none"),
        ({"selection": True}, "papa makes none"),
        ({"mixup": ()}, "mixup"),
        ({"linear_probe": 1.0}, "linear_probe is 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        population_recipe(**values)
