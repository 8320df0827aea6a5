"""Every method against a reference of its own: whole arrays, plain loops and sorts, straight from the
papers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from soupkit.errors import CheckpointError, RecipeError
from soupkit.merge.methods import all_methods
from soupkit.merge.pieces import STRATUM, Arrays, Draws, kept

METHODS = all_methods()
Vectors = list[np.ndarray]
SHAPES = [(7, 11), (5,), (), (1, 1), (3, 2, 2, 2)]


def vectors(shape: tuple[int, ...], *, num: int = 3, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape)) for _ in range(num)]


def run(name: str, arrays: Vectors, **parameters: Any) -> np.ndarray:
    """The method on whole arrays; lists of numbers become one value per ingredient."""
    pieces = Arrays(arrays)
    values = {
        key: np.array(value) if isinstance(value, list) and key != "grams" else value
        for key, value in parameters.items()
    }
    return pieces.merged(METHODS[name].function(pieces, **values))


def trimmed(vector: np.ndarray, keep: int, *, skip: int = 0) -> np.ndarray:
    """All but the largest `keep` after the largest `skip`, by a stable sort."""
    flat = vector.reshape(-1)
    order = np.argsort(-np.abs(flat), kind="stable")[skip : skip + keep]
    result = np.zeros_like(flat)
    result[order] = flat[order]
    return result.reshape(vector.shape)


def reference_election(sparse: Vectors, weight: list[float], normalize: bool) -> np.ndarray:
    result = np.zeros(sparse[0].size)
    columns = [vector.reshape(-1) for vector in sparse]
    for i in range(result.size):
        entries = [(w * column[i], w) for column, w in zip(columns, weight)]
        mass = math.fsum(entry for entry, _ in entries)
        agree = [(entry, w) for entry, w in entries if entry * mass > 0]
        if agree:
            total = math.fsum(entry for entry, _ in agree)
            result[i] = total / (math.fsum(w for _, w in agree) or 1.0) if normalize else total
    return result.reshape(sparse[0].shape)


def reference_sum(sparse: Vectors, weight: list[float], normalize: bool) -> np.ndarray:
    total = sum(w * vector for w, vector in zip(weight, sparse))
    return np.asarray(total / sum(weight) if normalize else total)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [[0.2, 0.2, 0.2], [0.01, 0.5, 1.0]])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties(shape: tuple[int, ...], density: list[float], normalize: bool) -> None:
    arrays, weight = vectors(shape), [1.0, 0.5, 2.0]
    sparse = [trimmed(array, max(1, round(share * array.size))) for array, share in zip(arrays, density)]
    expected = reference_election(sparse, weight, normalize)
    result = run("ties", arrays, weight=weight, density=density, normalize=normalize)
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("weight", [[0.5] * 3, [-1.0] * 3, [0.0] * 3, [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
@pytest.mark.parametrize("normalize", [True, False])
def test_elections_with_any_weights(weight: list[float], normalize: bool) -> None:
    arrays = [np.round(2 * array) for array in vectors((40, 50))]  # whole numbers: zeros, and sums of zero
    expected = reference_election(arrays, weight, normalize)
    result = run("ties", arrays, weight=weight, density=[1.0] * 3, normalize=normalize)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


def test_ties_by_hand() -> None:
    """Two of three agree on plus, the third is trimmed away; then a cancelling pair; then a lone entry."""
    arrays = [
        np.array([3.0, 2.0, 0.0, 0.1]),
        np.array([1.0, -2.0, 5.0, 0.1]),
        np.array([-0.5, 0.1, 0.1, -4.0]),
    ]
    result = run("ties", arrays, weight=[1.0] * 3, density=[0.5, 0.75, 0.25], normalize=True)
    np.testing.assert_array_equal(result, [2.0, 0.0, 5.0, -4.0])


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs-ties"])
@pytest.mark.parametrize("shape", SHAPES)
def test_breadcrumbs(name: str, shape: tuple[int, ...]) -> None:
    arrays, weight, density, gamma = vectors(shape), [1.0, 0.5, 2.0], [0.5, 0.9, 0.01], [0.1, 0.3, 1.0]
    sparse = []
    for array, share, top in zip(arrays, density, gamma):
        keep = max(1, round(share * array.size))
        sparse.append(trimmed(array, keep, skip=min(round(top * array.size), array.size - keep)))
    combine = reference_election if name.endswith("ties") else reference_sum
    expected = combine(sparse, weight, False)
    result = run(name, arrays, weight=weight, density=density, gamma=gamma, normalize=False)
    np.testing.assert_allclose(result, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("normalize", [True, False])
def test_task_arithmetic(normalize: bool) -> None:
    arrays, weight = vectors((4, 5)), [0.5, -0.25, 1.0]
    expected = reference_sum(arrays, weight, normalize)
    np.testing.assert_allclose(
        run("task-arithmetic", arrays, weight=weight, normalize=normalize), expected, rtol=1e-14
    )


def test_weights_that_sum_to_zero_are_not_divided_by() -> None:
    arrays = vectors((3,), num=2)
    result = run("task-arithmetic", arrays, weight=[1.0, -1.0], normalize=True)
    np.testing.assert_allclose(result, arrays[0] - arrays[1])


def test_tall_masks_and_consensus() -> None:
    arrays, threshold = vectors((6, 5)), 0.4
    total = sum(arrays)
    masks = [np.abs(array) >= threshold * np.abs(total - array) for array in arrays]
    assert 0 < masks[0].sum() < masks[0].size
    for agree in (1, 2, 3):
        expected = sum(arrays) * (sum(mask.astype(int) for mask in masks) >= agree)
        result = run("consensus", arrays, weight=[1.0] * 3, threshold=threshold, agree=agree)
        np.testing.assert_allclose(result, expected, rtol=1e-14)
    np.testing.assert_allclose(
        run("tall-mask", arrays, task=1, threshold=threshold), total * masks[1], rtol=1e-14
    )


# Spheres.


def test_slerp_is_the_circle() -> None:
    """Orthogonal unit vectors: slerp walks the quarter circle."""
    a, b = np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])
    for t in (0.0, 0.3, 0.5, 1.0):
        angle = t * math.pi / 2
        np.testing.assert_allclose(
            run("slerp", [a, b], t=t), [math.cos(angle), math.sin(angle), 0], atol=1e-15
        )


def test_slerp_agrees_with_scipy() -> None:
    from scipy.spatial import geometric_slerp

    a, b = (array / np.linalg.norm(array) for array in vectors((9,), num=2))
    np.testing.assert_allclose(run("slerp", [a, b], t=0.37), geometric_slerp(a, b, 0.37), rtol=1e-12)


def test_slerp_of_rows_rotates_each_row() -> None:
    a, b = vectors((4, 6), num=2)
    rows = [run("slerp", [x, y], t=0.2) for x, y in zip(a, b)]
    np.testing.assert_allclose(run("slerp", [a, b], t=0.2, rows=True), np.stack(rows), rtol=1e-13)


@pytest.mark.parametrize("factor", [2.0, 0.0, -1.0])
def test_slerp_of_parallel_zero_and_opposite_vectors_is_the_line(factor: float) -> None:
    a = np.array([1.0, 2.0, -1.0])
    np.testing.assert_allclose(run("slerp", [a, factor * a], t=0.25), 0.75 * a + 0.25 * factor * a, rtol=1e-9)


def test_nuslerp_is_slerp_by_weights() -> None:
    arrays = vectors((4, 6), num=2)
    np.testing.assert_array_equal(run("nuslerp", arrays, weight=[3.0, 1.0]), run("slerp", arrays, t=0.25))
    with pytest.raises(RecipeError, match="sum to zero"):
        run("nuslerp", arrays, weight=[1.0, -1.0])


def published_multislerp(arrays: Vectors, weight: list[float]) -> np.ndarray:
    """Every published step, tangent space and all."""
    norms = [np.linalg.norm(array) for array in arrays]
    units = [array / norm for array, norm in zip(arrays, norms)]
    shares = np.array(weight) / sum(weight)
    mean = sum(share * unit for share, unit in zip(shares, units))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(share * (unit - np.vdot(unit, mean) * mean) for share, unit in zip(shares, units))
    length = np.linalg.norm(tangent) + 1e-8
    return (mean * np.cos(length) + tangent * np.sin(length) / length) * float(shares @ norms)


def test_multislerp_does_the_published_steps() -> None:
    arrays, weight = vectors((4, 6), num=4), [0.4, 0.1, 1.0, 0.5]
    np.testing.assert_allclose(
        run("multislerp", arrays, weight=weight), published_multislerp(arrays, weight), rtol=1e-12
    )


def test_multislerp_refuses_antipodes() -> None:
    a = np.array([1.0, 2.0])
    with pytest.raises(RecipeError, match="cancel"):
        run("multislerp", [a, -a], weight=[1.0, 1.0])


def test_karcher_mean_of_two_is_slerp_of_directions() -> None:
    a, b = vectors((8,), num=2)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    direction = run("slerp", [a / norms[0], b / norms[1]], t=0.25)
    expected = direction * (0.75 * norms[0] + 0.25 * norms[1])
    np.testing.assert_allclose(run("karcher", [a, b], weight=[3.0, 1.0]), expected, rtol=1e-8)


def test_karcher_mean_is_where_the_logarithms_cancel() -> None:
    arrays, weight = vectors((5,), num=4, seed=3), [0.4, 0.1, 1.0, 0.5]
    arrays = [array + 2.0 for array in arrays]  # within one hemisphere, where the mean is unique
    result = run("karcher", arrays, weight=weight)
    mean = result / np.linalg.norm(result)
    gradient = np.zeros(5)
    for array, share in zip(arrays, weight):
        unit = array / np.linalg.norm(array)
        angle = math.acos(unit @ mean)
        gradient += share * angle / math.sin(angle) * (unit - (unit @ mean) * mean)
    assert np.linalg.norm(gradient) < 1e-8
    assert np.linalg.norm(result) == pytest.approx(
        np.average([np.linalg.norm(a) for a in arrays], weights=weight)
    )


def test_zero_tensors_on_the_sphere() -> None:
    zero, other = np.zeros(3), np.array([0.0, 3.0, 4.0])
    np.testing.assert_array_equal(run("multislerp", [zero, zero], weight=[1.0, 1.0]), zero)
    np.testing.assert_array_equal(run("karcher", [zero, zero], weight=[1.0, 1.0]), zero)
    np.testing.assert_allclose(run("karcher", [zero, other], weight=[1.0, 1.0]), other / 2)


def published_stock(arrays: Vectors) -> np.ndarray:
    num = len(arrays)
    pairs = list(itertools.combinations(arrays, 2))
    cosine = sum(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs) / len(pairs)
    return num * cosine / (1 + (num - 1) * cosine) * sum(arrays) / num


@pytest.mark.parametrize("num", [2, 3, 5])
def test_model_stock(num: int) -> None:
    arrays = [array + 1.0 for array in vectors((4, 6), num=num)]
    np.testing.assert_allclose(run("model-stock", arrays), published_stock(arrays), rtol=1e-12)
    rows = [published_stock([array[r] for array in arrays]) for r in range(4)]
    np.testing.assert_allclose(run("model-stock", arrays, rows=True), np.stack(rows), rtol=1e-10)


def test_model_stock_in_the_geometry_that_it_is_made_for() -> None:
    """In the paper's geometry (equal lengths, equal angles θ), where the formula is exact."""
    cosine, num = 0.3, 3
    gram = np.full((num, num), cosine) + (1 - cosine) * np.eye(num)
    arrays = list(np.linalg.cholesky(gram))
    mean = sum(arrays) / num
    t = np.linalg.norm(run("model-stock", arrays)) / np.linalg.norm(mean)
    assert t == pytest.approx(num * cosine / (1 + (num - 1) * cosine))


def test_model_stock_keeps_the_base_where_task_vectors_cancel() -> None:
    a = np.array([1.0, 2.0])
    np.testing.assert_array_equal(run("model-stock", [a, -a]), [0.0, 0.0])


# Selection by variance, by distance, by importance.


def published_sce(arrays: Vectors, density: float, normalize: bool) -> np.ndarray:
    stacked = np.stack([array.reshape(-1) for array in arrays])
    keep = max(1, round(density * stacked.shape[1]))
    order = np.argsort(-stacked.var(axis=0), kind="stable")[:keep]
    selected = np.zeros_like(stacked)
    selected[:, order] = stacked[:, order]
    shares = (selected**2).sum(axis=1) / (selected**2).sum()
    result = np.zeros(stacked.shape[1])
    for i in range(stacked.shape[1]):
        mass = math.fsum(selected[:, i])
        agree = [k for k in range(len(arrays)) if selected[k, i] * mass > 0]
        if agree:
            total = math.fsum(shares[k] * selected[k, i] for k in agree)
            result[i] = total / math.fsum(shares[k] for k in agree) if normalize else total
    return result.reshape(arrays[0].shape)


@pytest.mark.parametrize("density", [1.0, 0.3, 0.001])
@pytest.mark.parametrize("normalize", [True, False])
def test_sce(density: float, normalize: bool) -> None:
    arrays = vectors((6, 7), num=4)
    expected = published_sce(arrays, density, normalize)
    np.testing.assert_allclose(
        run("sce", arrays, density=density, normalize=normalize), expected, rtol=1e-12, atol=1e-15
    )


def test_nearswap() -> None:
    a, b = vectors((5, 6), num=2)
    t = 0.4
    with np.errstate(divide="ignore"):
        weight = np.clip(t / np.abs(b - a), 0, 1)
    np.testing.assert_allclose(a + run("nearswap", [b - a], t=t), (1 - weight) * a + weight * b, rtol=1e-12)


def test_fusion() -> None:
    from scipy.special import rel_entr, softmax

    a, b = vectors((8, 9), num=2)
    divergence = rel_entr(softmax(b, axis=1), softmax(a, axis=1)).sum(axis=1, keepdims=True)
    importance = np.abs(b - a) * divergence
    ordered = np.sort(importance.reshape(-1))
    first, median, third = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    chosen = importance >= median + 1.5 * (third - first)
    assert 0 < chosen.sum() < chosen.size / 2
    np.testing.assert_array_equal(run("fusion", [a, b], fence=1.5), np.where(chosen, b, a))


# Statistics.


def test_fisher() -> None:
    weights, information = vectors((3, 4), num=2), [np.abs(array) for array in vectors((3, 4), num=2, seed=1)]
    floored = [np.maximum(array, 0.5) for array in information]
    expected = sum(s * f * w for s, f, w in zip([1.0, 2.0], floored, weights)) / (floored[0] + 2 * floored[1])
    result = run("fisher", weights, weight=[1.0, 2.0], statistics=Arrays(information), floor=0.5)
    np.testing.assert_allclose(result, expected, rtol=1e-13)
    mean = run("fisher", weights, weight=[1.0, 2.0], statistics=None)
    np.testing.assert_allclose(mean, (weights[0] + 2 * weights[1]) / 3, rtol=1e-14)
    with pytest.raises(CheckpointError, match="negative"):
        run("fisher", weights, weight=[1.0, 1.0], statistics=Arrays([-array for array in information]))


def test_regmean_solves_its_least_squares() -> None:
    """With no shrinking, the merged layer minimizes Σ_k ‖X_k (W − W_k)ᵀ‖², as lstsq finds it."""
    rng = np.random.default_rng(0)
    weights, inputs = vectors((3, 5), num=2), [rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) * 2]
    stacked = np.concatenate(inputs)
    targets = np.concatenate([x @ w.T for x, w in zip(inputs, weights)])
    expected = np.linalg.lstsq(stacked, targets, rcond=None)[0].T
    grams = [x.T @ x for x in inputs]
    result = run("regmean", weights, weight=[1.0, 1.0], grams=grams, shrink=1.0)
    np.testing.assert_allclose(result, expected, rtol=1e-10)
    diagonal = run("regmean", weights, weight=[1.0, 1.0], grams=grams, shrink=0.0)
    scales = [np.diag(gram) for gram in grams]
    np.testing.assert_allclose(
        diagonal, (weights[0] * scales[0] + weights[1] * scales[1]) / sum(scales), rtol=1e-12
    )


def test_regmean_refuses_gram_matrices_that_do_not_fit() -> None:
    weights = vectors((3, 5), num=2)
    with pytest.raises(CheckpointError, match=r"shape \[4, 4\], its layer has 5 inputs"):
        run("regmean", weights, weight=[1.0, 1.0], grams=[np.eye(4)] * 2)
    with pytest.raises(CheckpointError, match="singular"):
        run("regmean", weights, weight=[1.0, 1.0], grams=[np.zeros((5, 5))] * 2)


# Randomness.

RANDOM = [name for name, method in METHODS.items() if "draws" in method.asks]


def random_parameters(name: str, num: int, density: float, **more: Any) -> dict[str, Any]:
    spread = {"epsilon": [0.2] * num} if name.startswith("della") else {}
    return {"weight": [1.0] * num, "density": [density] * num, **spread, **more}


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_keep_every_entry_with_its_probability(name: str) -> None:
    """Over many seeds: each entry is kept as often as it should be, and the rescaled results average to the
    input."""
    shape, density, seeds = (3, 8), 0.5, 2000
    (array,) = vectors(shape, num=1)
    results = np.stack(
        [
            run(name, [array], draws=Draws(seed, "w"), **random_parameters(name, 1, density, normalize=False))
            for seed in range(seeds)
        ]
    )
    often = (results != 0).mean(axis=0)
    expected = np.full(shape, density)
    if name.startswith("della"):
        ranks = np.argsort(np.argsort(np.abs(array), axis=1), axis=1)
        expected = density - 0.1 + 0.2 * ranks / (shape[1] - 1)
    assert np.abs(often - expected).max() < 5 * 0.5 / math.sqrt(seeds)
    deviation = np.abs(results.mean(axis=0) - array) / np.abs(array)
    assert deviation.max() < 0.15


@pytest.mark.parametrize("name", RANDOM)
def test_random_masks_of_two_ingredients_are_independent(name: str) -> None:
    arrays = [np.ones((8, 32)), np.full((8, 32), 1000.0)]
    sums = run(
        name, arrays, draws=Draws(0, "w"), **random_parameters(name, 2, 0.5, rescale=False, normalize=False)
    )
    both = np.isclose(sums, 1001.0).mean()
    assert 0.15 < both < 0.35
    assert {float(value) for value in np.unique(sums)} == {0.0, 1.0, 1000.0, 1001.0}


@pytest.mark.parametrize("name", RANDOM)
def test_a_draw_depends_on_seed_and_name_alone(name: str) -> None:
    arrays = vectors((40, 50))

    def draw(seed: int, tensor: str) -> np.ndarray:
        return run(name, arrays, draws=Draws(seed, tensor), **random_parameters(name, 3, 0.5))

    np.testing.assert_array_equal(draw(1, "a"), draw(1, "a"))
    assert not np.array_equal(draw(1, "a"), draw(2, "a"))
    assert not np.array_equal(draw(1, "a"), draw(1, "b"))


def test_without_rescaling_entries_stay_what_they_are() -> None:
    arrays = vectors((9, 9), num=1)
    result = run("dare-linear", arrays, weight=[1.0], density=[0.5], draws=Draws(0, "w"), rescale=False)
    assert set(np.unique(result[result != 0])) <= set(arrays[0].reshape(-1))


def test_della_refuses_probabilities_out_of_range() -> None:
    with pytest.raises(RecipeError, match="leaves the range from 0 to 1"):
        run(
            "della-ties",
            vectors((4, 4)),
            weight=[1.0] * 3,
            density=[0.1] * 3,
            epsilon=[0.5] * 3,
            draws=Draws(0, "w"),
        )


# What is kept: exactly k, in pieces of any size.

SIZES = [1, 2, 3, 10, 199, 1000]
SPARSE: dict[str, Callable[[float], dict[str, Any]]] = {
    "ties": lambda density: {"density": [density], "normalize": False},
    "dare-linear": lambda density: {"density": [density], "draws": Draws(0, "w")},
    "dare-ties": lambda density: {"density": [density], "draws": Draws(0, "w")},
    "della-linear": lambda density: {"density": [density], "epsilon": [0.0], "draws": Draws(0, "w")},
    "della-ties": lambda density: {
        "density": [density],
        "epsilon": [0.0],
        "draws": Draws(0, "w"),
        "normalize": False,
    },
    "breadcrumbs": lambda density: {"density": [density], "gamma": [0.05]},
    "breadcrumbs-ties": lambda density: {"density": [density], "gamma": [0.05]},
}


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.93, 1.0])
def test_density_keeps_exactly_k(name: str, size: int, density: float) -> None:
    expected = max(1, round(density * size))
    for array in (np.random.default_rng(0).normal(size=size), np.ones(size)):
        result = run(name, [array], weight=[1.0], **SPARSE[name](density))
        assert np.count_nonzero(result) == expected
    assert kept(density, size) == expected


@pytest.mark.parametrize("name", ["sce", "ties"])
def test_ties_go_to_the_lower_index(name: str) -> None:
    array = np.array([1.0, -1.0, 1.0, 2.0])
    parameters: dict[str, Any] = {"density": 0.5} if name == "sce" else {"density": [0.5], "weight": [1.0]}
    np.testing.assert_array_equal(run(name, [array], **parameters), [1.0, 0.0, 0.0, 2.0])


CUT_ANYWHERE = {
    "task-arithmetic": {"weight": np.array([1.0, 0.5])},
    "ties": {"weight": np.array([1.0, 0.5]), "density": np.array([0.3, 0.2])},
    "breadcrumbs": {
        "weight": np.array([1.0, 0.5]),
        "density": np.array([0.3, 0.2]),
        "gamma": np.array([0.1, 0.01]),
    },
    "consensus": {"weight": np.array([1.0, 0.5])},
    "dare-ties": {"weight": np.array([1.0, 0.5]), "density": np.array([0.3, 0.2]), "draws": Draws(0, "w")},
}


@pytest.mark.parametrize("name", CUT_ANYWHERE)
def test_pieces_do_not_change_the_bits(name: str) -> None:
    shape = (3 * STRATUM + 17,)
    arrays = [np.round(array, 1) for array in vectors(shape, num=2)]  # rounded: many ties
    whole, cut = Arrays(arrays), Arrays(arrays, piece=STRATUM)
    function = METHODS[name].function
    np.testing.assert_array_equal(
        whole.merged(function(whole, **CUT_ANYWHERE[name])), cut.merged(function(cut, **CUT_ANYWHERE[name]))
    )


def test_pieces_of_rows_do_not_change_the_bits_of_della() -> None:
    length = 1000
    arrays = vectors((100, length), num=2)
    parameters = {
        "weight": np.ones(2),
        "density": np.full(2, 0.4),
        "epsilon": np.full(2, 0.2),
        "draws": Draws(0, "w"),
    }
    whole, cut = Arrays(arrays), Arrays(arrays, piece=length * (STRATUM // length))
    function = METHODS["della-ties"].function
    np.testing.assert_array_equal(
        whole.merged(function(whole, **parameters)), cut.merged(function(cut, **parameters))
    )
