"""Spectral merges against sums over singular triplets, one by one, and against what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from soupkit.merge.families.low_rank import EXACT, leading
from soupkit.merge.methods import all_methods
from soupkit.merge.pieces import Arrays

METHODS = all_methods()
SPECTRAL = ["tsv-m", "iso-c", "iso-cts", "knots-ties", "wudi"]
OPTIONS: dict[str, dict[str, Any]] = {
    "iso-cts": {"common": 0.5},
    "knots-ties": {"weight": np.ones(3), "density": np.full(3, 0.3), "normalize": True},
    "wudi": {"iterations": 5, "lr": 1e-3},
}


def matrices(rows: int = 24, columns: int = 30, *, num: int = 3, seed: int = 0) -> list[np.ndarray]:
    return [0.1 * np.random.default_rng([seed, k]).normal(size=(rows, columns)) for k in range(num)]


def run(name: str, arrays: list[np.ndarray], **parameters: Any) -> np.ndarray:
    values = {"max_side": 1000} | OPTIONS.get(name, {}) | parameters
    return Arrays(arrays).merged(METHODS[name].function(Arrays(arrays), **values))


def polar(matrix: np.ndarray) -> np.ndarray:
    """(A Aᵀ)^(−1/2) A or A (Aᵀ A)^(−1/2), whichever exists, by eigenvalues."""
    wide = matrix.shape[0] < matrix.shape[1]
    values, vectors = np.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return root @ matrix if wide else matrix @ root


def test_tsv_joins_the_largest_triplets_of_every_task() -> None:
    left, right, sizes = [], [], []
    for matrix in matrices():
        u, s, vt = np.linalg.svd(matrix)
        for i in range(24 // 3):
            left.append(u[:, i])
            right.append(vt[i])
            sizes.append(s[i])
    u, vt = polar(np.array(left).T), polar(np.array(right))
    expected = sum(s * np.outer(u[:, i], vt[i]) for i, s in enumerate(sizes))
    np.testing.assert_allclose(run("tsv-m", matrices()), expected, atol=1e-12)


def test_tsv_of_tasks_that_share_nothing_is_their_sum() -> None:
    """Orthogonal directions need no orthogonalisation."""
    u = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0]
    vt = np.linalg.qr(np.random.default_rng(1).normal(size=(30, 30)))[0]
    arrays = [(u[:, 8 * k : 8 * k + 8] * (1.0 + np.arange(8))) @ vt[8 * k : 8 * k + 8] for k in range(3)]
    np.testing.assert_allclose(run("tsv-m", arrays), sum(arrays), atol=1e-12)


def test_iso_c_keeps_directions_and_the_sum_of_singular_values() -> None:
    total = sum(matrices())
    merged = run("iso-c", matrices())
    singular = np.linalg.svd(total, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(merged, compute_uv=False), singular.mean(), rtol=1e-12)
    np.testing.assert_allclose(merged, singular.mean() * polar(total), atol=1e-12)


def test_iso_c_leaves_out_directions_that_nothing_tells() -> None:
    """A sum of rank 4 stays of rank 4, and what rounding makes of the rest is not enlarged."""
    thin = [a[:, :2] @ a[:2] for a in matrices(24, 24, num=2)]
    singular = np.linalg.svd(run("iso-c", thin), compute_uv=False)
    expected = np.linalg.svd(sum(thin), compute_uv=False)[:4].mean()
    np.testing.assert_allclose(singular[:4], expected, rtol=1e-9)
    assert singular[4:].max() < 1e-12


def test_iso_cts_without_own_directions_is_iso_c_and_with_them_spans_both() -> None:
    arrays = matrices()
    np.testing.assert_allclose(run("iso-cts", arrays, common=1.0), run("iso-c", arrays), atol=1e-12)
    u, s, vt = np.linalg.svd(sum(arrays), full_matrices=False)
    left, right, sizes = [u[:, :12]], [vt[:12]], [s[:12]]
    for each in arrays:
        own = np.linalg.svd(each - u[:, :12] @ u[:, :12].T @ each, full_matrices=False)
        left.append(own[0][:, :4])
        sizes.append(own[1][:4])
        right.append(own[2][:4])
    expected = polar(np.hstack(left)) @ polar(np.vstack(right)) * np.concatenate(sizes).mean()
    np.testing.assert_allclose(run("iso-cts", arrays, common=0.5), expected, atol=1e-11)


def test_knots_elects_signs_in_the_shared_basis() -> None:
    """The same as TIES of the coordinates in the left singular vectors of all task matrices side by side."""
    arrays = matrices()
    u = np.linalg.svd(np.hstack(arrays), full_matrices=False)[0]
    turned = [u.T @ each for each in arrays]
    ties = METHODS["ties"].function(Arrays(turned), **OPTIONS["knots-ties"])
    np.testing.assert_allclose(run("knots-ties", arrays), u @ Arrays(turned).merged(ties), atol=1e-12)


def test_knots_of_everything_is_the_mean_whatever_the_basis_when_signs_agree() -> None:
    thin = [np.outer(np.arange(1.0, 25), np.arange(1.0, 31)) * size for size in (0.1, 0.2, 0.6)]
    merged = run("knots-ties", thin, density=np.ones(3))
    np.testing.assert_allclose(merged, np.mean(thin, axis=0), rtol=1e-12)


def test_wudi_is_adam_on_the_interference() -> None:
    """Against torch's Adam and automatic differentiation of the loss as it is printed."""
    import torch

    arrays = [torch.tensor(each) for each in matrices(6, 9)]
    merged = torch.nn.Parameter(sum(arrays))
    optimizer = torch.optim.Adam([merged], lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        sum(((merged - each) @ each.T).square().sum() / each.square().sum() for each in arrays).backward()
        optimizer.step()
    found = run("wudi", matrices(6, 9), iterations=20)
    np.testing.assert_allclose(found, merged.detach().numpy(), atol=1e-12)


def test_wudi_ignores_a_task_that_changed_nothing() -> None:
    arrays = matrices(6, 9, num=2)
    np.testing.assert_array_equal(run("wudi", [*arrays, np.zeros((6, 9))]), run("wudi", arrays))
    assert not run("wudi", [np.zeros((6, 9))] * 2).any()


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("shape", [(7,), (), (1, 9), (9, 1), (0, 4), (30, 8)])
def test_what_is_no_matrix_or_too_long_is_merged_entry_by_entry(name: str, shape: tuple[int, ...]) -> None:
    arrays = [np.random.default_rng(k).normal(size=shape) for k in range(3)]
    expected = np.mean(arrays, axis=0)
    if name == "knots-ties":
        ties = METHODS["ties"].function(Arrays(arrays), **OPTIONS["knots-ties"])
        expected = Arrays(arrays).merged(ties)
    np.testing.assert_allclose(run(name, arrays, max_side=20), expected, atol=1e-15)


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_convolution_is_a_matrix_with_a_row_for_each_output(name: str) -> None:
    kernels = [np.random.default_rng(k).normal(size=(6, 3, 2, 2)) for k in range(3)]
    flat = run(name, [each.reshape(6, 12) for each in kernels])
    np.testing.assert_array_equal(run(name, kernels), flat.reshape(6, 3, 2, 2))


@pytest.mark.parametrize("name", SPECTRAL)
def test_turning_rows_and_columns_turns_the_merge(name: str) -> None:
    """Spectra know no basis; TIES' and Adam's entries do, but for KnOTS' rows."""
    if name == "wudi":
        pytest.skip("Adam works entry by entry")
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(24, 24)))[0]
    turned = run(name, [turn @ each for each in matrices()])
    np.testing.assert_allclose(turned, turn @ run(name, matrices()), atol=1e-11)


def test_more_tasks_than_directions_are_averaged_by_tsv() -> None:
    arrays = matrices(2, 3, num=3)
    np.testing.assert_allclose(run("tsv-m", arrays), np.mean(arrays, axis=0))


def test_the_random_decomposition_keeps_its_bound() -> None:
    """‖A − A_k‖₂ within 1.6 σ_k+1 on a spectrum that falls slowly, the worst case for it."""
    side, width = EXACT + 40, 100
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(side, side)))[0] for _ in range(2))
    sizes = 1 / np.sqrt(1.0 + np.arange(side))
    u, s, vt = leading((left * sizes) @ right, width)
    rest = np.linalg.norm((left * sizes) @ right - (u * s) @ vt, 2)
    assert sizes[width] <= rest * (1 + 1e-9)
    assert rest < 1.6 * sizes[width]
    np.testing.assert_allclose(u.T @ u, np.eye(width), atol=1e-12)
