"""TWA in M coefficients against the published algorithm on whole weight vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from soup.tiny import Data, ingredients, live, loss_at, stacked, tensors

from soupkit.soup import gram as gram_module
from soupkit.soup.fit import Fit, Settings
from soupkit.soup.gram import gram_matrix
from soupkit.soup.subspace import Ingredients, Subspace
from soupkit.soup.twa import Orthonormal, orthonormal_basis

K, N, EPOCHS, BATCH = 6, 40, 4, 10


def vectors(found: Ingredients) -> np.ndarray:
    """A: the differences to the mean, then the mean."""
    weights = stacked(found)
    return np.concatenate([weights - weights.mean(0), weights.mean(0)[None]])


def gram_schmidt(rows: np.ndarray) -> np.ndarray:
    """Classical, as in the reference, in float64; vectors without a rest are dropped."""
    basis: list[np.ndarray] = []
    for row in rows:
        rest = row.copy()
        for other in basis:
            rest -= (other @ row) * other
        if np.linalg.norm(rest) > 1e-6 * np.linalg.norm(row):
            basis.append(rest / np.linalg.norm(rest))
    return np.stack(basis)


def published(
    found: Ingredients, start: np.ndarray, *, lr: float, momentum: float, decay: float
) -> np.ndarray:
    """g ← PᵀP g, then SGD with momentum and weight decay on all weights (Li et al. 2023, algorithm 1)."""
    basis = torch.from_numpy(gram_schmidt(stacked(found)))
    weights = torch.from_numpy(start.copy()).requires_grad_()
    optimizer, data = torch.optim.SGD([weights], lr=lr, momentum=momentum, weight_decay=decay), Data(N)
    for epoch in range(EPOCHS):
        order = np.random.default_rng([0, epoch]).permutation(np.arange(N))
        optimizer.param_groups[0]["lr"] = lr * (1 if epoch < 2 else 0.1 if epoch < 3 else 0.01)
        for batch in np.array_split(order, N // BATCH):
            optimizer.zero_grad()
            loss_at(weights, found.layout, data.images[batch], data.targets[batch]).backward()
            assert weights.grad is not None
            weights.grad = basis.T @ (basis @ weights.grad)
            optimizer.step()
    return weights.detach().numpy()


@pytest.mark.parametrize("start", ["average", 2])
def test_twa_is_the_papers_with_momentum_and_weight_decay(start: str | int) -> None:
    found = ingredients(K, blocks="global")
    space = Subspace(found, np.full((K, 1), 1 / K))
    point = np.zeros(K + 1)
    point[-1] = 1
    if start != "average":
        point[start] = 1
    coordinates = Orthonormal(gram_matrix(found.checkpoints, found.layout), point)
    assert coordinates.ranks == [K]
    settings = Settings(EPOCHS, BATCH, 0.5, 10, "sgd", weight_decay=0.05, momentum=0.9, schedule="step")
    run = Fit(coordinates, space, live(found), settings, Data(N), np.arange(N))
    run.move()
    weights = stacked(found)
    begin = weights.mean(0) if start == "average" else weights[start]
    np.testing.assert_allclose(run.model.weights.numpy(), begin, atol=2e-5)
    run.run("all")
    end = published(found, begin, lr=0.5, momentum=0.9, decay=0.05)
    assert np.linalg.norm(end - begin) > 0.1
    np.testing.assert_allclose(run.model.weights.numpy(), end, atol=3e-4)
    beta, gamma = (part.detach().numpy() for part in coordinates.point())
    np.testing.assert_allclose(space.coefficients(beta, gamma)[:, 0] @ weights, end, atol=3e-4)


@pytest.mark.parametrize("buffer", [40, 1 << 20])
@pytest.mark.parametrize("blocks", ["global", "tensor"])
def test_the_streamed_gram_matrix_is_the_gram_matrix(
    buffer: int, blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_module, "BUFFER", buffer)
    found = ingredients(K, blocks=blocks)
    gram = gram_matrix(found.checkpoints, found.layout)
    rows = vectors(found)
    for block in range(found.layout.num_blocks):
        inside = np.concatenate(
            [np.arange(s.start, s.slice.stop) for s in found.layout.spans if s.block == block]
        )
        exact = rows[:, inside] @ rows[:, inside].T
        np.testing.assert_allclose(gram[block], exact, atol=1e-6 * np.abs(exact).max())


def test_the_basis_is_orthonormal_and_spans_the_checkpoints() -> None:
    found = ingredients(K, blocks="global", spread=0.02)
    gram, rows = gram_matrix(found.checkpoints, found.layout)[0], vectors(found)
    basis_Nr = orthonormal_basis(gram)
    basis = basis_Nr.T @ rows
    np.testing.assert_allclose(basis @ basis.T, np.eye(K), atol=1e-4)
    weights = stacked(found)
    np.testing.assert_allclose(weights @ basis.T @ basis, weights, atol=3e-5)


def test_repeated_and_dependent_checkpoints_add_no_dimension() -> None:
    made = tensors(4)
    half = {name: (made[0][name] + made[1][name]) / 2 for name in made[0]}
    found = Ingredients([*made, dict(made[2]), half], ingredients(4, blocks="global").layout)
    coordinates = Orthonormal(gram_matrix(found.checkpoints, found.layout), np.eye(7)[-1])
    assert coordinates.ranks == [4]
    beta, gamma = (part.detach().numpy() for part in coordinates.point())
    rows = vectors(found)
    np.testing.assert_allclose(beta[:, 0] @ rows[:-1] + gamma[0] * rows[-1], rows[-1], atol=1e-4)
    assert np.abs(beta).max() < 10


def test_blocks_of_zeros_have_no_dimension() -> None:
    assert orthonormal_basis(np.zeros((3, 3))).shape == (3, 0)
    gram = np.diag([0.0, 4.0, 0.0])
    np.testing.assert_allclose(orthonormal_basis(gram), [[0], [0.5], [0]])
