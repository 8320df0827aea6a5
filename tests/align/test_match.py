"""Weight matching against brute force, against what was hidden, and against its own promises."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch
from align.hand_made import SPECS, attention, gathered, hidden_copy, mlp, objective, recurrent, weights

from soupkit.align.matching.anchored import anchored_order, anchored_start
from soupkit.align.matching.assign import assign
from soupkit.align.matching.match import improve, in_random_order, loaded, match_weights, refine
from soupkit.align.matching.similarity import Pair
from soupkit.align.permutation import check_permutation, compose, count_changed, identity, random_permutation
from soupkit.align.spec import Permutation, PermutationSpec
from soupkit.errors import CheckpointError

CPU = torch.device("cpu")


def pair_of(spec: PermutationSpec, seed: int) -> Pair:
    return Pair(spec, *(loaded(spec, weights(spec, seed + k), CPU) for k in range(2)))


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("name", SPECS)
def test_a_hidden_permutation_is_found(name: str, noise: float) -> None:
    spec = SPECS[name]
    a = weights(spec, 1)
    b, true = hidden_copy(spec, a, noise=noise, seed=3)
    match = match_weights(spec, a, b)
    assert count_changed(compose(true, match.permutation, spec=spec)) == 0
    if noise == 0:
        found = gathered(spec, b, match.permutation)
        assert all(np.array_equal(found[key], a[key]) for key in a)
        assert match.cosine == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", ["mlp", "attention", "dense"])
def test_the_anchored_start_alone_finds_an_exact_copy(name: str) -> None:
    spec = SPECS[name]
    a = weights(spec, 4)
    b, true = hidden_copy(spec, a, noise=0.0, seed=5)
    pair = Pair(spec, loaded(spec, a, CPU), loaded(spec, b, CPU))
    assert count_changed(compose(true, anchored_start(pair, anchored_order(pair)), spec=spec)) == 0


def all_permutations(spec: PermutationSpec) -> list[Permutation]:
    orders = {name: list(itertools.permutations(range(group.size))) for name, group in spec.groups.items()}
    chosen = itertools.product(*orders.values())
    return [dict(zip(orders, map(np.array, each), strict=True)) for each in chosen]


@pytest.mark.parametrize(
    ("spec", "num", "least_optimal"),
    [
        (mlp(3, 5, 2), 6, 1.0),  # one group: a linear assignment is exact
        (
            attention(2, 2, 3).pin(["stream"]),
            2,
            1.0,
        ),  # one group of blocks with what is inside: exact as well
        (mlp(3, 4, 3, 2), 12, 0.8),
        (recurrent(5), 12, 0.6),
    ],
    ids=["one group", "wreath", "two groups", "quadratic"],
)
def test_against_all_permutations(spec: PermutationSpec, num: int, least_optimal: float) -> None:
    """Never below the identity, never above the best, and often the best."""
    num_optimal = 0
    every = all_permutations(spec)
    for seed in range(num):
        a, b = weights(spec, seed), weights(spec, 100 + seed)
        match = match_weights(spec, a, b, restarts=2)
        check_permutation(match.permutation, spec)
        found = objective(a, gathered(spec, b, match.permutation))
        best = max(objective(a, gathered(spec, b, each)) for each in every)
        assert objective(a, b) <= found + 1e-9
        assert found <= best + 1e-4
        num_optimal += found >= best - 1e-4
    assert num_optimal >= least_optimal * num


@pytest.mark.parametrize("name", SPECS)
def test_similarities_are_those_of_the_units(name: str) -> None:
    """The strided sums against plain gathers of each unit's positions, in float64."""
    pair = pair_of(SPECS[name], 7)
    for mover, cells in pair.cells.items():
        plain = [cell for cell in cells if not cell.families(mover)]
        found = pair.gram(mover, plain).double().numpy()
        for family in {family for cell in cells for family in cell.families(mover)}:
            within = [cell for cell in cells if family in cell.families(mover)]
            found += np.einsum("kulu->kl", pair.block_gram(family, within).double().numpy())
        expected = np.zeros_like(found)
        for place in pair.spec.occurrences(mover):
            x, y = (tensors[place.tensor].double().numpy() for tensors in (pair.target, pair.moving))
            rows = [np.moveaxis(v, place.axis, 0)[place.positions].reshape(len(found), -1) for v in (x, y)]
            expected += rows[0] @ rows[1].T
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_the_objective_never_falls(name: str) -> None:
    pair = pair_of(SPECS[name], 11)
    values = [pair.objective()]
    permutation = identity(pair.spec)
    for mover in [*pair.cells, *pair.cells, *pair.cells]:
        permutation = compose(permutation, improve(pair, mover), spec=pair.spec)
        values.append(pair.objective())
    assert all(after >= before for before, after in itertools.pairwise(values))
    assert values[-1] > values[0] or name == "recurrent"
    a, b = (weights(pair.spec, 11 + k) for k in range(2))
    gain = objective(a, gathered(pair.spec, b, permutation)) - objective(a, b)
    assert gain == pytest.approx(values[-1] - values[0], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_models_that_are_aligned_stay_as_they_are(name: str) -> None:
    spec = SPECS[name]
    a = weights(spec, 2)
    random = np.random.default_rng(0)
    b = {
        key: value + 0.2 * random.standard_normal(value.shape).astype(np.float32) for key, value in a.items()
    }
    match = match_weights(spec, a, b)
    assert match.num_changed == 0
    assert match.start == "identity"
    assert match.describe() == f"identity, 0 of {len(spec.groups)} groups changed"
    assert match.cosine == match.cosine_before


def test_more_searches_are_never_worse_and_the_seed_decides() -> None:
    spec = mlp(4, 12, 12, 12, 3)
    a, b = weights(spec, 0), weights(spec, 1)
    values = [match_weights(spec, a, b, restarts=num).cosine for num in (0, 2, 6)]
    assert values == sorted(values)
    first, again = (match_weights(spec, a, b, seed=5).permutation for _ in range(2))
    assert all(np.array_equal(first[name], again[name]) for name in spec.groups)


def test_units_that_nothing_tells_apart_stay_in_place() -> None:
    assert assign(np.zeros((5, 5))).tolist() == [0, 1, 2, 3, 4]
    assert assign(np.array([[0.0, 1.0, 0], [1.0, 0, 0], [0, 0, 0]])).tolist() == [1, 0, 2]


def test_statistics_and_counters_do_not_vote_but_are_permuted() -> None:
    spec = mlp(3, 5, 2)
    hidden = spec.axes["0.bias"]
    axes = {**spec.axes, "norm.running_mean": hidden, "norm.running_var": hidden}
    spec = PermutationSpec(spec.groups, axes)
    a = weights(spec, 0)
    b, true = hidden_copy(spec, a, noise=0.0, seed=1)
    b["norm.running_mean"] = b["norm.running_mean"] + 1e6 * np.arange(5, dtype=np.float32)
    match = match_weights(spec, a, b)
    assert count_changed(compose(true, match.permutation, spec=spec)) == 0
    assert set(loaded(spec, a, CPU)) == {"0.weight", "0.bias", "1.weight"}


def test_half_precision_is_matched_in_single() -> None:
    spec = SPECS["mlp"]
    a = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights(spec, 1).items()}
    b, true = hidden_copy(
        spec, {name: value.astype(np.float32) for name, value in a.items()}, noise=0.0, seed=2
    )
    match = match_weights(spec, a, {name: value.astype(ml_dtypes.bfloat16) for name, value in b.items()})
    assert count_changed(compose(true, match.permutation, spec=spec)) == 0


def test_weights_that_are_not_numbers_are_refused() -> None:
    spec = SPECS["mlp"]
    a, b = weights(spec, 0), weights(spec, 1)
    b["1.weight"][0, 0] = np.nan
    with pytest.raises(CheckpointError, match=r"1\.weight is not finite"):
        match_weights(spec, a, b)


def test_nothing_to_permute() -> None:
    spec = mlp(4, 6, 2).pin(["hidden1"])
    match = match_weights(spec, weights(spec, 0), weights(spec, 1))
    assert match.permutation == {}
    assert match.describe() == "identity, 0 of 0 groups changed"


def test_refine_returns_the_whole_permutation() -> None:
    """From a start that was applied already: one gather of the original gives what refine made of the
    pair."""
    spec = SPECS["attention"]
    pair = pair_of(spec, 21)
    original = {name: tensor.numpy() for name, tensor in pair.moving.items()}
    start = random_permutation(spec, 4)
    pair.move(list(pair.target), start)
    found = refine(pair, start, in_random_order([0]))
    assert count_changed(found) > 0
    for name, values in gathered(spec, original, found).items():
        assert np.array_equal(values, pair.moving[name].numpy())
