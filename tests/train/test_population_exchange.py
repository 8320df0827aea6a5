"""Rows of one buffer are the models, and what is done to them equals arithmetic on state dicts in float64."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from train.population_small import ALONE, CPU
from train.small import small_model

from soupkit.train.population.exchange import Pull, everyone, gram, mix, mixed_row, mutate, similarity
from soupkit.train.population.flat import Flat
from soupkit.train.population.grid import Grid

N = 3


def models(n: int = N) -> list[torch.nn.Module]:
    """Members with different weights, statistics and counters."""
    found = [small_model(seed) for seed in range(n)]
    for seed, model in enumerate(found):
        model.train()
        with torch.no_grad():
            for _ in range(seed + 1):
                model(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
        model.eval()
    return found


def copies(found: list[torch.nn.Module]) -> list[dict[str, torch.Tensor]]:
    return [{name: t.clone() for name, t in model.state_dict().items()} for model in found]


def expected(before: list[dict[str, torch.Tensor]], matrix: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """C W in float64; what is counted stays."""
    children = []
    for number, row in enumerate(matrix):
        child = {}
        for name, own in before[number].items():
            total = sum(c * state[name].double() for c, state in zip(row, before))
            child[name] = total.to(own.dtype) if own.is_floating_point() else own
        children.append(child)
    return children


def assert_close(found: list[torch.nn.Module], wanted: list[dict[str, torch.Tensor]], *, ulps: float) -> None:
    for model, state in zip(found, wanted):
        for name, tensor in model.state_dict().items():
            scale = state[name].abs().max() if tensor.is_floating_point() else 0
            assert (tensor - state[name]).abs().max() <= ulps * 1.2e-7 * scale, name


def test_rows_are_the_models() -> None:
    plain, found = models(), models()
    images = torch.randn(4, 3, 16, 16)
    flat = Flat(found, CPU)
    for model, same in zip(found, plain):
        torch.testing.assert_close(
            model(images), same(images), rtol=1e-5, atol=1e-6
        )  # sums go by the memory layout
        for name, tensor in same.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
    assert found[1].conv.weight.is_contiguous(memory_format=torch.channels_last)
    flat.rows[torch.float32][1] += 1.0
    assert torch.equal(found[1].norm.running_mean, plain[1].norm.running_mean + 1)
    assert torch.equal(found[1].head.weight, plain[1].head.weight + 1)
    assert torch.equal(found[2].head.weight, plain[2].head.weight)
    assert list(flat.integers(1)) == ["norm.num_batches_tracked"]
    assert (
        flat.spans["norm.running_mean"].offset
        >= flat.num_parameters[torch.float32]
        > flat.spans["head.bias"].offset
    )


def test_the_optimizer_moves_the_row() -> None:
    found = models()
    flat = Flat(found, CPU)
    optimizer = torch.optim.SGD(found[0].parameters(), lr=0.1, momentum=0.9)
    found[0](torch.randn(2, 3, 16, 16)).square().sum().backward()
    before = flat.rows[torch.float32].clone()
    optimizer.step()
    changed = (flat.rows[torch.float32] != before).any(dim=1)
    assert changed.tolist() == [True, False, False]


def test_tied_tensors_and_two_dtypes() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(4, 4, bias=False)
            self.b = torch.nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.wide = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))

    found: list[torch.nn.Module] = [Tied(), Tied()]
    flat = Flat(found, CPU)
    assert set(flat.spans) == {"a.weight", "wide"}
    assert {dtype: rows.shape[0] for dtype, rows in flat.rows.items()} == {torch.float32: 2, torch.float64: 2}
    Pull(flat, Grid(ALONE, 2)).now(1.0)
    assert found[0].b.weight is found[0].a.weight
    assert torch.equal(found[0].b.weight, found[1].a.weight)
    assert torch.equal(found[0].wide, found[1].wide)


@pytest.mark.parametrize("share", [0.01, 0.37, 1.0])
def test_a_pull_equals_arithmetic_on_state_dicts(share: float) -> None:
    found = models()
    before = copies(found)
    matrix = (1 - share) * np.eye(N) + share * np.full((N, N), 1 / N)
    pull = Pull(Flat(found, CPU), Grid(ALONE, N))
    pull.now(share)
    assert_close(found, expected(before, matrix), ulps=4)
    late = models()
    pull = Pull(Flat(late, CPU), Grid(ALONE, N))
    pull.begin(share, update=7)
    assert pull.pending
    pull.finish()
    assert not pull.pending
    pull.finish()
    assert_close(late, expected(before, matrix), ulps=4)


def test_a_late_pull_keeps_what_was_learned_meanwhile() -> None:
    found = models()
    flat = Flat(found, CPU)
    before = flat.rows[torch.float32].clone()
    learned = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    pull = Pull(flat, Grid(ALONE, N))
    pull.begin(0.5, update=0)
    flat.rows[torch.float32] += learned
    pull.finish()
    wanted = before + learned + 0.5 * (before.mean(0) - before)
    torch.testing.assert_close(flat.rows[torch.float32], wanted, rtol=0, atol=2e-6)
    torch.testing.assert_close(
        flat.rows[torch.float32].mean(0), (before + learned).mean(0), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_late_pulls_converge_as_theory_says(share: float) -> None:
    """Members that descend quadratics, x_j ← x_j − lr (x_j − m_j), pulled every k steps, `late` steps late.

    With q = 1 − lr, x_j − x̄ just before a pull begins goes to (m_j − m̄)·(1 − q^k)/(1 − q^k + s·q^(k −
    late)); at the published s = 1 − α = 0.01 that is within 1 % of what prompt pulls reach.
    """
    lr, k = 0.05, 4
    minima = torch.randn(N, 8, generator=torch.Generator().manual_seed(1))

    def spread(late: int) -> torch.Tensor:
        lines: list[torch.nn.Module] = [torch.nn.Linear(8, 1, bias=False) for _ in range(N)]
        flat = Flat(lines, CPU)
        rows = flat.rows[torch.float32].zero_()
        pull = Pull(flat, Grid(ALONE, N))
        for step in range(1, 100 * k + 1):
            rows[:, :8] -= lr * (rows[:, :8] - minima)
            if pull.pending and step - pull.since >= late:
                pull.finish()
            if step % k == 0:
                before = rows[:, :8].clone()
                pull.begin(share, update=step) if late else pull.now(share)
        torch.testing.assert_close(before.mean(0), minima.mean(0), rtol=0, atol=1e-6)
        return before - minima.mean(0)

    q, prompt = (1 - lr) ** k, spread(0)
    for late in (0, 1, 3):
        factor = (1 - q) / (1 - q + share * (1 - lr) ** (k - late))
        found = spread(late)
        torch.testing.assert_close(found, factor * (minima - minima.mean(0)), rtol=1e-4, atol=1e-5)
        assert share > 0.01 or (found - prompt).norm() < 0.01 * prompt.norm()


@pytest.mark.parametrize("kind", ["dirichlet", "pairs", "greedy"])
def test_mixing_equals_a_product_in_float64(kind: str) -> None:
    random = np.random.default_rng(3)
    matrix = {
        "dirichlet": random.dirichlet(np.ones(N), N),
        "pairs": np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]),
        "greedy": np.tile([0.5, 0, 0.5], (N, 1)),
    }[kind]
    found = models()
    before = copies(found)
    flat, grid = Flat(found, CPU), Grid(ALONE, N)
    row = mixed_row(flat, grid, matrix[1])
    mix(flat, grid, matrix)
    assert_close(found, expected(before, matrix), ulps=0.51)
    assert torch.equal(row[torch.float32], flat.rows[torch.float32][1])


def test_equal_members_stay_what_they_are() -> None:
    found: list[torch.nn.Module] = [small_model(0) for _ in range(7)]
    before = copies(found)
    mix(Flat(found, CPU), Grid(ALONE, 7), np.random.default_rng(0).dirichlet(np.ones(7), 7))
    assert_close(found, before, ulps=0.0)


def test_mutation_is_noise_on_the_parameters_alone() -> None:
    model: torch.nn.Module = timm.create_model("test_resnet", num_classes=10)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flat = Flat([model], CPU)
    mutate(flat, flat.row(0), 0.1, seed=(1, 2, 3), normalize=False)
    noise = {name: (t - before[name]) / 0.1 for name, t in model.state_dict().items()}
    names = {name for name, _ in model.named_parameters()}
    everything = torch.cat([noise[name].flatten() for name in names])
    assert abs(everything.mean()) < 5 / len(everything) ** 0.5
    assert abs(everything.std() - 1) < 5 / (2 * len(everything)) ** 0.5
    assert all(bool((t == 0).all()) for name, t in noise.items() if name not in names)

    def weights(*seed: int, normalize: bool = False) -> torch.Tensor:
        other: torch.nn.Module = timm.create_model("test_resnet", num_classes=10)
        other.load_state_dict(before)
        flat = Flat([other], CPU)
        mutate(flat, flat.row(0), 0.1, seed=seed, normalize=normalize)
        return other.get_parameter("fc.weight").detach()

    again = weights(1, 2, 3)
    assert torch.equal(again, model.get_parameter("fc.weight"))
    assert not torch.equal(weights(1, 2, 4), again)
    unit = before["fc.weight"].square().mean().sqrt()
    wanted = before["fc.weight"] + (again - before["fc.weight"]) * unit
    torch.testing.assert_close(weights(1, 2, 3, normalize=True), wanted, rtol=0, atol=1e-6)


def test_similarity_equals_torch() -> None:
    found = models()
    flat, grid = Flat(found, CPU), Grid(ALONE, N)
    vectors = [torch.cat([p.detach().flatten() for p in model.parameters()]).double() for model in found]
    pairs = [(0, 1), (0, 2), (1, 2)]
    cosines = [torch.nn.functional.cosine_similarity(vectors[i], vectors[j], dim=0).item() for i, j in pairs]
    distances = [(vectors[i] - vectors[j]).norm().item() for i, j in pairs]
    assert similarity(gram(flat, grid)) == pytest.approx((np.mean(cosines), np.mean(distances)), rel=1e-9)
    assert similarity(np.eye(1)) == (1.0, 0.0)
    for name, tensor in everyone(flat, grid)[2].items():
        assert torch.equal(tensor, found[2].state_dict()[name])
