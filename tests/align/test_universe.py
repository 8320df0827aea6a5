"""More than two models in a common frame, by MergeMany and by Frank–Wolfe: against brute force and their
promises."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from align.hand_made import SPECS, gathered, hidden_copy, mlp, weights

from soupkit.align.matching.frank_wolfe import Axes, Relaxed, _best_step, _between, _vertices, frank_wolfe
from soupkit.align.matching.match import loaded
from soupkit.align.matching.similarity import all_permuted, permuted, sum_of_pairs
from soupkit.align.matching.universe import Universe, align_all, medoid
from soupkit.align.permutation import (
    check_permutation,
    compose,
    count_changed,
    identity,
    inverse,
    random_permutation,
)
from soupkit.align.spec import Permutation, PermutationSpec

CPU = torch.device("cpu")
KINDS: tuple[Universe, ...] = ("merge-many", "frank-wolfe")
Tensors = dict[str, torch.Tensor]


def models_of(spec: PermutationSpec, num: int, seed: int = 0) -> list[Tensors]:
    return [loaded(spec, weights(spec, 10 * seed + k), CPU) for k in range(num)]


def moved(spec: PermutationSpec, models: Sequence[Tensors], found: Sequence[Permutation]) -> list[Tensors]:
    return [all_permuted(model, spec, each) for model, each in zip(models, found, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECS)
def test_noisy_hidden_copies_meet(name: str, kind: Universe) -> None:
    spec = SPECS[name]
    a = weights(spec, 1)
    copies = [hidden_copy(spec, a, noise=0.3, seed=seed) for seed in (3, 4, 5)]
    models = [loaded(spec, each, CPU) for each in (a, *(copy for copy, _ in copies))]
    found = align_all(spec, models, to=0, universe=kind)
    for match, (_, true) in zip(found.matches[1:], copies, strict=True):
        assert count_changed(compose(true, match.permutation, spec=spec)) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECS)
def test_unrelated_models_come_nearer_and_the_reference_stays(name: str, kind: Universe) -> None:
    spec = SPECS[name]
    models = models_of(spec, 4)
    found = align_all(spec, models, to=2, universe=kind)
    orders = [match.permutation for match in found.matches]
    for order in orders:
        check_permutation(order, spec)
    assert count_changed(orders[2]) == 0
    assert sum_of_pairs(moved(spec, models, orders)) == pytest.approx(found.sum_of_pairs, rel=1e-6)
    pairwise = [align_all(spec, [models[2], model], to=0).matches[1].permutation for model in models]
    assert found.sum_of_pairs >= sum_of_pairs(moved(spec, models, pairwise)) - 1e-6


def test_frank_wolfe_is_kept_only_where_it_is_better() -> None:
    won = 0
    for seed in range(5):
        spec = SPECS["mlp"]
        models = models_of(spec, 4, seed)
        plain, other = (align_all(spec, models, to=0, universe=kind) for kind in KINDS)
        assert other.sum_of_pairs >= plain.sum_of_pairs
        won += other.sum_of_pairs > plain.sum_of_pairs + 1e-6
    assert won >= 2


def rows(models: Sequence[Tensors]) -> torch.Tensor:
    """One row for each model: all its numbers."""
    return torch.stack(
        [torch.cat([tensor.double().flatten() for tensor in model.values()]) for model in models]
    )


def test_against_brute_force() -> None:
    """Three networks of width 3: never above the optimum, and often at it."""
    spec = mlp(4, 3, 3, 2)
    orders = [np.array(order) for order in itertools.permutations(range(3))]
    everything = [dict(zip(spec.groups, each, strict=True)) for each in itertools.product(orders, repeat=2)]
    reached = 0
    for seed in range(10):
        models = models_of(spec, 3, seed)
        second, third = (rows(moved(spec, [model] * len(everything), everything)) for model in models[1:])
        first = rows(models[:1])
        best = float((first @ second.T + third @ first.T + third @ second.T).max())
        found = align_all(spec, models, to=0, universe="frank-wolfe").sum_of_pairs
        assert found <= best + 1e-4
        reached += found >= best - 1e-4
    assert reached >= 6


@pytest.mark.parametrize("name", SPECS)
def test_at_a_vertex_means_are_permutations(name: str) -> None:
    spec = SPECS[name]
    (model,) = models_of(spec, 1)
    axes = Axes(spec, {key: tensor.shape for key, tensor in model.items()})
    order = random_permutation(spec, 1)
    relaxed = Relaxed.at(axes, model, order)
    for key, tensor in model.items():
        assert torch.allclose(relaxed[key], permuted(tensor, spec, key, order), atol=1e-6)
    assert count_changed(compose(order, inverse(relaxed.settled(), spec), spec=spec)) == 0
    half = relaxed.towards(Relaxed.at(axes, model, identity(spec)), 0.4)
    settled = compose(order, inverse(half.settled(), spec), spec=spec)
    assert count_changed(settled) == 0  # the larger share wins


@pytest.mark.parametrize("name", SPECS)
def test_vertices_are_uphill_and_the_line_is_a_polynomial(name: str) -> None:
    spec = SPECS[name]
    models = models_of(spec, 3)
    axes = Axes(spec, {key: tensor.shape for key, tensor in models[0].items()})
    stays = [Relaxed.at(axes, model, identity(spec)) for model in models]
    drawn = [Relaxed.at(axes, model, random_permutation(spec, seed)) for seed, model in enumerate(models)]
    current = _between(drawn, stays, 0.5)
    value = sum_of_pairs(current)
    ends = [Relaxed.at(axes, *pair) for pair in zip(models, _vertices(axes, current), strict=True)]
    slope = (sum_of_pairs(_between(current, ends, 1e-3)) - value) / 1e-3
    assert slope > 0
    for other in range(3):  # no other direction is steeper
        elsewhere = [
            Relaxed.at(axes, model, random_permutation(spec, 100 * other + place))
            for place, model in enumerate(models)
        ]
        assert (sum_of_pairs(_between(current, elsewhere, 1e-3)) - value) / 1e-3 < slope
    step, predicted = _best_step(axes, current, ends, value)
    reached = sum_of_pairs(_between(current, ends, step))
    assert reached == pytest.approx(predicted, rel=1e-4)
    for share in (0.1, 0.4, 0.7, 1.0):
        assert reached >= sum_of_pairs(_between(current, ends, share)) - 1e-4


def test_it_rises_from_where_it_starts_inside_the_hull() -> None:
    """From unmatched models the result, a vertex, is better than they are."""
    spec = SPECS["mlp"]
    models = models_of(spec, 3)
    found = frank_wolfe(spec, models, [identity(spec)] * 3)
    assert sum_of_pairs(moved(spec, models, found)) > sum_of_pairs(models)


def test_the_medoid_is_the_one_in_the_middle() -> None:
    spec = SPECS["mlp"]
    a = weights(spec, 1)
    near = [hidden_copy(spec, a, noise=noise, seed=7 + k)[0] for k, noise in enumerate((0.8, 0.0, 0.8))]
    assert medoid(spec, [loaded(spec, each, CPU) for each in near]) == 1


def test_gathering_agrees_with_the_views() -> None:
    spec = SPECS["attention"]
    a = weights(spec, 1)
    order = random_permutation(spec, 2)
    by_view = gathered(spec, a, order)
    by_torch = moved(spec, [loaded(spec, a, CPU)], [order])[0]
    assert all(np.array_equal(by_view[name], by_torch[name].numpy()) for name in by_torch)
