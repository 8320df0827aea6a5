"""Learned soups and MEHL against the published formulas, written out in float64 with autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from soup.tiny import Data, ingredients, live, loss_at, per_parameter, stacked, tensors

from soupkit.checkpoint.source import slots_of
from soupkit.merge.memory import combined
from soupkit.merge.mixture import Mixture
from soupkit.merge.writer import StreamOptions
from soupkit.soup.coordinates import Coordinates
from soupkit.soup.fit import Fit, Settings
from soupkit.soup.learned import Softmax, Unconstrained
from soupkit.soup.mehl import HyperPlane, into_hull
from soupkit.soup.resident import Form
from soupkit.soup.subspace import Ingredients, Subspace

K, N, EPOCHS, BATCH = 5, 30, 3, 10


def mean(found: Ingredients) -> np.ndarray:
    return np.full((len(found), found.layout.num_blocks), 1 / len(found))


def learned(found: Ingredients, space: Subspace, coordinates: Coordinates, **options: Any) -> Fit:
    chosen = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.1, "piece": 4} | options
    run = Fit(coordinates, space, live(found), Settings(**chosen), Data(N), np.arange(N))
    run.run("all")
    return run


def by_hand(
    found: Ingredients, weights_of: Any, parameters: list[torch.Tensor], optimizer: Any, **options: Any
) -> Any:
    """The same loop with the whole matrix of weights in memory and autograd through it."""
    data, temperature = Data(N), options.get("temperature")
    for epoch in range(EPOCHS):
        order = np.random.default_rng([0, epoch]).permutation(np.arange(N))
        for number, batch in enumerate(np.array_split(order, N // BATCH)):
            optimizer.zero_grad()
            beta = 1.0 if temperature is None else temperature
            loss = loss_at(weights_of(), found.layout, data.images[batch], data.targets[batch], beta)
            loss.backward()
            if "clip" in options:
                torch.nn.utils.clip_grad_norm_(parameters, options["clip"])
            if "rate" in options:
                optimizer.param_groups[0]["lr"] = options["rate"](epoch * (N // BATCH) + number)
            optimizer.step()


def places(found: Ingredients) -> torch.Tensor:
    return torch.from_numpy(per_parameter(np.arange(found.layout.num_blocks), found.layout)).long()


@pytest.mark.parametrize("blocks", ["global", "tensor"])
@pytest.mark.parametrize("temperature", [True, False])
def test_a_learned_soup_is_the_papers(blocks: str, temperature: bool) -> None:
    """argmin Σ ℓ(β f(x, Σ softmax(a)_k w_k)) with AdamW, all weights stacked in memory."""
    found = ingredients(K, blocks=blocks)
    coordinates = Softmax(K, found.layout.num_blocks, temperature=temperature)
    learned(found, Subspace(found, mean(found)), coordinates)
    weights_KD, where = torch.from_numpy(stacked(found)), places(found)
    logits = torch.zeros(K, found.layout.num_blocks, dtype=torch.float64, requires_grad=True)
    beta = torch.ones((), dtype=torch.float64, requires_grad=True)
    parameters = [logits, beta] if temperature else [logits]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0)

    def weights() -> torch.Tensor:
        return (logits.softmax(0)[:, where] * weights_KD).sum(0)

    by_hand(found, weights, parameters, optimizer, temperature=beta if temperature else None)
    assert float(logits.detach().abs().max()) > 0.3
    torch.testing.assert_close(coordinates.logits_KB, logits, atol=2e-4, rtol=1e-3)
    if coordinates.temperature is not None:
        torch.testing.assert_close(coordinates.temperature, beta, atol=1e-4, rtol=1e-4)


def test_an_unconstrained_soup_moves_in_the_whole_span() -> None:
    found = ingredients(K)
    coordinates = Unconstrained(K, 4, temperature=False)
    run = learned(found, Subspace(found, mean(found)), coordinates)
    weights_KD, where = torch.from_numpy(stacked(found)), places(found)
    free = torch.full((K, 4), 1 / K, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([free], lr=0.1, weight_decay=0.0)
    by_hand(found, lambda: (free[:, where] * weights_KD).sum(0), [free], optimizer)
    assert float((free.detach().sum(0) - 1).abs().max()) > 0.05
    torch.testing.assert_close(coordinates.coefficients_KB, free, atol=2e-4, rtol=1e-3)
    beta, gamma = (part.detach().numpy() for part in coordinates.point())
    np.testing.assert_allclose(run.subspace.coefficients(beta, gamma), free.detach().numpy(), atol=2e-4)


def test_mehl_is_the_papers() -> None:
    """w = c + Σ X p, p = d/‖d‖, ∂L/∂X = ⟨p, ∇L⟩: absolute steps, clipping, warmup and cosine as published."""
    found = ingredients(K)
    space = Subspace(found, mean(found))
    coordinates = HyperPlane(space.norms, step="distance")
    learned(found, space, coordinates, lr=0.05, clip_grad=0.3, schedule="cosine", warmup=0.2)
    weights_KD, where = torch.from_numpy(stacked(found)), places(found)
    differences = weights_KD - weights_KD.mean(0)
    norms = torch.zeros(K, 4, dtype=torch.float64).index_add_(1, where, differences**2).sqrt()
    units = differences / norms[:, where]
    x = torch.zeros(K, 4, dtype=torch.float64, requires_grad=True)
    steps = EPOCHS * (N // BATCH)

    def rate(step: int) -> float:
        warm = int(0.2 * steps)
        cosine = (1 + np.cos(np.pi * (step - warm) / (steps - warm))) / 2
        return 0.05 * float((step + 1) / warm if step < warm else cosine)

    optimizer = torch.optim.AdamW([x], lr=0.05, weight_decay=0.0)
    by_hand(
        found, lambda: weights_KD.mean(0) + (x[:, where] * units).sum(0), [x], optimizer, clip=0.3, rate=rate
    )
    assert float(x.detach().abs().max()) > 0.05
    torch.testing.assert_close(coordinates.coordinates_KB, x, atol=1e-4, rtol=2e-3)


def test_mehl_coefficients_sum_to_one_and_step_blocks_are_scale_free() -> None:
    """Ten times the distances: the same coefficients in block units, others in absolute ones."""
    reached = {}
    for step in ("block", "distance"):
        for spread in (0.01, 0.1):
            found = ingredients(K, spread=spread)
            coordinates = HyperPlane(Subspace(found, mean(found)).norms, step=step)  # type: ignore[arg-type]
            with torch.no_grad():
                coordinates.coordinates_KB += torch.arange(20.0, dtype=torch.float64).view(5, 4) / 10
            beta, gamma = coordinates.point()
            assert gamma.tolist() == [1] * 4
            reached[step, spread] = beta.detach()
    torch.testing.assert_close(reached["block", 0.01], reached["block", 0.1], rtol=1e-3, atol=0)
    assert (reached["distance", 0.01] / reached["distance", 0.1]).nanmean() > 9
    found = ingredients(K)
    space = Subspace(found, mean(found))
    beta = reached["block", 0.1].numpy()
    np.testing.assert_allclose(space.coefficients(beta, np.ones(4)).sum(0), 1)


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_frozen_blocks_get_no_coefficient_and_no_nan(form: Form) -> None:
    made = tensors(K)
    for each in made:
        each["0.weight"] = made[0]["0.weight"]
    found = Ingredients(made, ingredients(K).layout)
    space = Subspace(found, mean(found), form=form)
    frozen = found.layout.blocks["0.weight"]
    for step in ("block", "distance"):
        coordinates = HyperPlane(space.norms, step=step)  # type: ignore[arg-type]
        run = learned(found, space, coordinates, clip_grad=1.0)
        beta, gamma = (part.detach().numpy() for part in coordinates.point())
        assert np.isfinite(beta).all()
        assert (beta[:, frozen] == 0).all()
        assert np.abs(beta).max() > 0
        np.testing.assert_allclose(space.coefficients(beta, gamma)[:, frozen], 1 / K)
        assert torch.isfinite(run.model.weights).all()


@pytest.mark.parametrize("kind", ["softmax", "mehl"])
def test_the_live_model_is_the_streamed_model(kind: str) -> None:
    """After steps with momentum and weight decay, the weights in the model are those that the writer
    makes."""
    found = ingredients(K)
    space = Subspace(found, mean(found))
    coordinates: Coordinates = Softmax(K, 4) if kind == "softmax" else HyperPlane(space.norms)
    run = learned(found, space, coordinates, optimizer="sgd", momentum=0.9, weight_decay=0.01, lr=1.0)
    beta, gamma = (part.detach().numpy() for part in coordinates.point())
    mixture = Mixture(tuple("abcde"), space.coefficients(beta, gamma), 1.0, found.layout.blocks)
    slots = slots_of(found.checkpoints[0])
    written = combined(found.checkpoints, mixture, slots=slots, options=StreamOptions(threads=1))
    state = run.model.task.model.state_dict()
    moved = max(float(np.abs(written[name] - found.checkpoints[0][name]).max()) for name in slots)
    assert moved > 0.05
    for name in slots:
        np.testing.assert_allclose(state[name].numpy(), written[name], atol=2e-6)


def test_losses_and_gradients_do_not_depend_on_how_a_batch_is_cut() -> None:
    found = ingredients(K)
    space = Subspace(found, mean(found))
    ends = []
    for piece in (1, 3, 10):
        coordinates = HyperPlane(space.norms)
        learned(found, space, coordinates, piece=piece)
        ends.append(coordinates.coordinates_KB.detach())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ends[0], ends[2], atol=1e-5, rtol=1e-4)


def test_the_projection_into_the_hull_is_the_nearest_point() -> None:
    """Against a quadratic program solved by scipy, column by column."""
    from scipy.optimize import minimize

    random = np.random.default_rng(0)
    beta = np.concatenate(
        [random.normal(0.2, 0.5, (4, 6)), np.array([[0.1, 0.2, 0.3, 0.1], [-1, -2, -3, -1.0]]).T], 1
    )
    projected = into_hull(torch.from_numpy(beta)).numpy()
    for column, found in zip(beta.T, projected.T):
        exact = minimize(
            lambda x, column=column: ((x - column) ** 2).sum(),
            np.full(4, 0.2),
            bounds=[(0, None)] * 4,
            constraints={"type": "ineq", "fun": lambda x: 1 - x.sum()},
            method="SLSQP",
            options={"ftol": 1e-14},
        ).x
        np.testing.assert_allclose(found, exact, atol=1e-5)


def test_nonnegative_coefficients_stay_so() -> None:
    found = ingredients(K, spread=0.5)
    space = Subspace(found, mean(found))
    free, kept = HyperPlane(space.norms), HyperPlane(space.norms, nonnegative=True)
    for coordinates in (free, kept):
        learned(found, space, coordinates, lr=0.5)
    assert float(free.point()[0].detach().min()) < -0.01
    beta, gamma = (part.detach().numpy() for part in kept.point())
    total = space.coefficients(beta, gamma)
    assert total.min() >= -1e-12
    np.testing.assert_allclose(total.sum(0), 1)
    assert beta.max() > 0.01
