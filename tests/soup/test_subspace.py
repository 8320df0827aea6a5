"""The subspace against brute force in float64: points, pullbacks, coefficients, and what it keeps in
memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from soup.tiny import NUM_PARAMETERS, ingredients, per_parameter, stacked, tensors

from soupkit.checkpoint.source import slots_of
from soupkit.merge.memory import combined
from soupkit.merge.mixture import Mixture
from soupkit.merge.writer import StreamOptions
from soupkit.soup.plan import Demand, plan_for
from soupkit.soup.resident import Form
from soupkit.soup.subspace import Ingredients, Subspace

K = 4
TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-3, "int8": 2e-3, "disk": 1e-6}
ROUNDING = {"float32": 1e-7, "bfloat16": 2**-9, "int8": 1 / 254, "disk": 1e-7}
each_form = pytest.mark.parametrize("form", TOLERANCE)
each_division = pytest.mark.parametrize("blocks", ["global", "tensor", "layer"])


def center(num: int, num_blocks: int, seed: int | None = None) -> np.ndarray:
    if seed is None:
        return np.full((num, num_blocks), 1 / num)
    return np.random.default_rng(seed).dirichlet(np.ones(num), num_blocks).T


def coordinates(space: Subspace, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    beta = random.standard_normal((len(space.rows), space.layout.num_blocks))
    return torch.from_numpy(beta), torch.from_numpy(random.uniform(0.5, 1.5, space.layout.num_blocks))


@each_form
@each_division
def test_a_point_is_the_mixture_of_its_coefficients(form: Form, blocks: str) -> None:
    """Also around another centre than the mean, with directions of only some of the ingredients."""
    found = ingredients(K, blocks=blocks)
    for center_KB, rows in (
        (center(K, found.layout.num_blocks), None),
        (center(K, found.layout.num_blocks, 3), [3, 1]),
    ):
        space = Subspace(found, center_KB, rows=rows, form=form)
        beta, gamma = coordinates(space)
        out = torch.full((NUM_PARAMETERS,), torch.nan)
        space.point(beta, gamma, out=out)
        total_KB = space.coefficients(beta.numpy(), gamma.numpy())
        exact = (per_parameter(total_KB, found.layout) * stacked(found)).sum(0)
        assert np.abs(out.double().numpy() - exact).max() < TOLERANCE[form] * np.abs(exact).max() * 2
        np.testing.assert_allclose(total_KB.sum(0), gamma.numpy())


@each_form
@each_division
def test_pullback_is_the_gradient_that_autograd_finds(form: Form, blocks: str) -> None:
    """L = Σ_d sin(w_d) r_d, differentiated through w(β, γ) in float64 by torch."""
    found = ingredients(K, blocks=blocks)
    space = Subspace(found, center(K, found.layout.num_blocks, 3), form=form)
    center_D = torch.from_numpy((per_parameter(space.center_KB, found.layout) * stacked(found)).sum(0))
    directions = torch.from_numpy(stacked(found)) - center_D
    places = torch.from_numpy(per_parameter(np.arange(found.layout.num_blocks), found.layout)).long()
    beta, gamma = (part.requires_grad_() for part in coordinates(space))
    weights = gamma[places] * center_D + (beta[:, places] * directions).sum(0)
    weights.retain_grad()
    random = torch.from_numpy(np.random.default_rng(0).standard_normal(NUM_PARAMETERS))
    (weights.sin() * random).sum().backward()
    to_beta, to_gamma = space.pullback(weights.grad.float())
    bound = ROUNDING[form] * float(directions.abs().max() * weights.grad.abs().sum()) + 1e-6
    assert (to_beta - beta.grad).abs().max() < bound
    assert torch.allclose(to_gamma, gamma.grad, atol=1e-5)


def test_a_point_is_what_the_engine_writes() -> None:
    """The live weights and the streamed soup differ only by float32 rounding."""
    found = ingredients(K)
    space = Subspace(found, center(K, 4))
    beta, gamma = coordinates(space)
    out = torch.empty(NUM_PARAMETERS)
    space.point(beta, gamma, out=out)
    mixture = Mixture(
        tuple("abcd"), space.coefficients(beta.numpy(), gamma.numpy()), 1.0, found.layout.blocks
    )
    written = combined(
        found.checkpoints, mixture, slots=slots_of(found.checkpoints[0]), options=StreamOptions(threads=1)
    )
    for span in found.layout.spans:
        np.testing.assert_allclose(out[span.slice].view(span.shape).numpy(), written[span.name], atol=3e-6)


def test_norms_are_those_of_the_differences_and_zero_for_frozen_blocks() -> None:
    made = tensors(K)
    for each in made:
        each["0.bias"] = made[0]["0.bias"]
    found = Ingredients(made, ingredients(K).layout)
    space = Subspace(found, center(K, 4))
    differences = stacked(found) - stacked(found).mean(0)
    exact = [[np.linalg.norm(row[span.slice]) for span in found.layout.spans] for row in differences]
    np.testing.assert_allclose(space.norms, exact, rtol=1e-5, atol=1e-9)
    frozen = next(span.block for span in found.layout.spans if span.name == "0.bias")
    assert (space.norms[:, frozen] == 0).all()
    products, _ = space.pullback(torch.ones(NUM_PARAMETERS))
    assert (products[:, frozen] == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_ingredients_may_have_any_floating_dtype(dtype: str) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    made = [{name: value.astype(kind) for name, value in each.items()} for each in tensors(K)]
    found = Ingredients(made, ingredients(K).layout)
    space = Subspace(found, center(K, 4))
    beta, gamma = torch.zeros(K, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    beta[2] = 1
    out = torch.empty(NUM_PARAMETERS)
    space.point(beta, gamma, out=out)
    np.testing.assert_allclose(out.numpy(), stacked(found)[2], atol=1e-6)


@each_form
def test_what_is_allocated_is_what_the_plan_promises(form: Form) -> None:
    """A counting allocator; the gradient and the model are not the subspace's."""
    found, counted = ingredients(K), []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        counted.append(torch.empty(shape, dtype=dtype))
        return counted[-1]

    Subspace(found, center(K, 4), form=form, allocate=allocate)
    plan = plan_for(Demand(found.layout, K, 8, activations=0, process=0), form, K, 8, 10**9)
    promised = {name.partition(",")[0]: size for name, size in plan.parts}
    expected = promised["centre"] + promised["directions"] + promised["widened directions"]
    assert sum(tensor.nbytes for tensor in counted) == expected
