"""Directions of learned soups, matching and alignment in memory, on a device."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from align.hand_made import SPECS, hidden_copy, weights
from align.test_align_members import images, net
from cuda.conftest import Gpu
from soup.tiny import Data, ingredients, task
from task.fake import Fake, Rows
from torch import Tensor

from soupkit.align.graph.trace import permutation_spec
from soupkit.align.matching.match import loaded, match_weights
from soupkit.align.matching.universe import align_all
from soupkit.align.members import align_members, repair_members
from soupkit.checkpoint.source import slots_of
from soupkit.soup.fit import Fit, Settings
from soupkit.soup.live import LiveModel
from soupkit.soup.mehl import HyperPlane
from soupkit.soup.plan import Demand, plan_for
from soupkit.soup.resident import FORMS, Form
from soupkit.soup.subspace import Subspace
from soupkit.world import ALONE

CPU = torch.device("cpu")
NUM = 4
BATCHES = [Rows(images(), torch.zeros(32))]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
"""Sums of a few dozen float32 products in another order; the directions are the same bits in every form."""


class OnDevice(Fake):
    """The tiny task, whose batches go where the model is, as those of images do."""

    def __init__(self, device: torch.device, **values: Any) -> None:
        super().__init__(**values)
        self.model.to(device)
        self.device = device

    def outputs(self, batch: Any) -> Tensor:
        return super().outputs(Rows(batch.inputs.to(self.device), batch.labels))

    def loss(self, batch: Any, temperature: Tensor | None = None) -> Tensor:
        return super().loss(Rows(batch.inputs, batch.labels.to(self.device)), temperature)


def space_on(device: torch.device, form: Form) -> Subspace:
    return Subspace(ingredients(NUM), np.full((NUM, 4), 1 / NUM), form=form, device=device)


@pytest.mark.parametrize("form", FORMS)
def test_directions_on_the_device_give_the_points_and_gradients_of_the_cpu(gpu: Gpu, form: Form) -> None:
    here, there = space_on(CPU, form), space_on(gpu.device, form)
    random = np.random.default_rng(1)
    beta, gamma = (
        torch.from_numpy(random.standard_normal((NUM, 4))),
        torch.from_numpy(random.uniform(1, 2, 4)),
    )
    points, found = [], []
    for space in (here, there):
        out = torch.empty(space.layout.num_parameters, device=space.center.device)
        space.point(beta, gamma, out=out)
        points.append(out.cpu())
        found.append(space.pullback(torch.sin(torch.arange(len(out)).float()).to(out.device)))
    torch.testing.assert_close(points[1], points[0], **CLOSE)
    for one, other in zip(*found, strict=True):
        assert one.device == other.device == CPU
        torch.testing.assert_close(one, other, **CLOSE)
    np.testing.assert_allclose(there.norms, here.norms, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_directions_take_what_the_plan_says(gpu: Gpu, form: Form) -> None:
    """Tensors of the device by its own count; it hands out blocks of 512 bytes."""
    gpu.forget_peak()
    before = torch.cuda.memory_allocated(gpu.device)
    space = space_on(gpu.device, form)
    plan = plan_for(Demand(space.layout, NUM, 8, 0, 0), form, NUM, 8, 0)
    parts = {name.partition(",")[0]: size for name, size in plan.parts}
    kept = torch.cuda.memory_allocated(gpu.device) - before
    blocks = 512 * (2 + 2 * len(space.layout.spans))
    promised = parts["centre"] + parts["directions"] + parts["widened directions"]
    assert promised <= kept <= promised + blocks
    assert gpu.peak() - before <= promised + parts["reading"] + blocks


def test_coefficients_are_learned_as_on_the_cpu(gpu: Gpu) -> None:
    """Six steps; the tolerance is that of a gradient in float32, over as many."""
    found, learned = ingredients(NUM), []
    for device in (CPU, gpu.device):
        space = Subspace(found, np.full((NUM, 4), 1 / NUM), device=device)
        own = OnDevice(device, model=task().model, loss=task().summed)
        live = LiveModel(own, found.layout, slots_of(found.checkpoints[0]), ALONE)
        coordinates = HyperPlane(space.norms)
        settings = Settings(epochs=2, batch_size=8, lr=0.1, piece=4)
        losses = Fit(coordinates, space, live, settings, Data(24), np.arange(24)).run("all").losses
        learned.append((losses, [each.detach().cpu() for each in coordinates.parameters], live.weights.cpu()))
    (losses, here, point), (losses_there, there, point_there) = learned
    assert losses_there == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(point_there, point, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "attention", "dense"])
def test_units_are_matched_on_the_device(gpu: Gpu, name: str) -> None:
    """The same orders: similarities in float32 are summed in float64 before they are compared."""
    spec, first = SPECS[name], weights(SPECS[name], 1)
    second, _ = hidden_copy(spec, first, noise=0.3, seed=3)
    here, there = (match_weights(spec, first, second, device=device) for device in (CPU, gpu.device))
    assert there.cosine == pytest.approx(here.cosine, rel=1e-6)
    for group, order in here.permutation.items():
        assert np.array_equal(order, there.permutation[group]), group


@pytest.mark.parametrize("universe", ["merge-many", "frank-wolfe"])
def test_a_universe_is_found_on_the_device(gpu: Gpu, universe: Any) -> None:
    spec = SPECS["mlp"]
    first = weights(spec, 1)
    copies = [first, *(hidden_copy(spec, first, noise=0.1, seed=seed)[0] for seed in (2, 3))]
    found = [
        align_all(spec, [loaded(spec, each, device) for each in copies], to=0, universe=universe)
        for device in (CPU, gpu.device)
    ]
    for here, there in zip(found[0].matches, found[1].matches, strict=True):
        assert there.cosine == pytest.approx(here.cosine, rel=1e-6)
        assert all(np.array_equal(here.permutation[name], there.permutation[name]) for name in spec.groups)


def test_members_are_aligned_and_repaired_where_they_are(gpu: Gpu) -> None:
    """Moments are sums in float64 of float32 outputs; batch norm and folding divide by them."""
    model = net(0)
    spec = permutation_spec(net(0), (torch.ones(2, 3, 8, 8),))  # as before a population moves to its device
    results = []
    for device in (CPU, gpu.device):
        members = [
            {name: tensor.to(device) for name, tensor in net(seed).state_dict().items()} for seed in range(3)
        ]
        matches = align_members(members, spec)
        child = {name: sum(each[name] for each in members[:2]) / 2 for name in members[0]}
        child |= {name: members[0][name].clone() for name in child if name.endswith("tracked")}
        own = OnDevice(device, model=deepcopy(model))
        repair_members(
            [child], members, np.array([[0.5, 0.5, 0]]), own, kind="forward", batches=lambda: BATCHES
        )
        assert all(tensor.device == device for tensor in child.values())
        results.append(({name: tensor.cpu() for name, tensor in child.items()}, matches))
    (here, matches), (there, matches_there) = results
    for one, other in zip(matches, matches_there, strict=True):
        assert all(np.array_equal(one.permutation[name], other.permutation[name]) for name in spec.groups)
    for name, tensor in here.items():
        torch.testing.assert_close(there[name], tensor, rtol=1e-3, atol=1e-4)
