"""A population in memory: aligned and repaired in place, as the functions for checkpoints do."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from task.fake import Fake, Rows
from torch import Tensor, nn

from soupkit.align.graph.trace import permutation_spec
from soupkit.align.graph.trial import permuted_state
from soupkit.align.members import align_members, repair_members
from soupkit.align.moments import measure
from soupkit.align.permutation import random_permutation
from soupkit.align.repair import measure_endpoints, ratios, target_moments
from soupkit.align.sites import find_sites
from soupkit.task.weights import to_numpy


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def images(num: int = 32) -> Tensor:
    return torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_members_meet_and_still_compute_the_same() -> None:
    model = net(0)
    spec = permutation_spec(model, (images(2),))
    members = [deepcopy(model.state_dict()) for _ in range(3)]
    for number in (1, 2):
        for name, tensor in members[number].items():
            if tensor.is_floating_point() and "running" not in name:
                tensor.add_(0.3 * tensor.std().nan_to_num(0) * torch.randn(tensor.shape))
        members[number].update(permuted_state(members[number], spec, random_permutation(spec, number)))
    before = []
    for member in members:
        model.load_state_dict(member)
        before.append(model(images()).detach())
    far = float((members[0]["3.weight"] - members[1]["3.weight"]).norm())
    matches = align_members(members, spec)
    assert [match.num_changed for match in matches] == [0, 2, 2]
    assert float((members[0]["3.weight"] - members[1]["3.weight"]).norm()) < 0.5 * far
    for member, outputs in zip(members, before, strict=True):
        model.load_state_dict(member)
        assert torch.allclose(model(images()), outputs, atol=1e-5)
    again = align_members(members, spec)
    assert [match.num_changed for match in again] == [0, 0, 0]


def test_children_get_the_statistics_of_their_parents() -> None:
    parents = [deepcopy(net(seed).state_dict()) for seed in range(3)]
    matrix = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    children = [
        {
            name: sum(float(a) * parent[name] for a, parent in zip(row, parents, strict=True))
            if parents[0][name].is_floating_point()
            else parents[0][name].clone()
            for name in parents[0]
        }
        for row in matrix
    ]
    model = net(0)
    task, data = Fake(model), [Rows(images(), torch.zeros(32))]
    repair_members(children, parents, matrix, task, kind="forward", batches=lambda: data)
    sites = find_sites(model, lambda: model(images())).sites
    states = [{name: to_numpy(tensor) for name, tensor in parent.items()} for parent in parents]
    endpoints = measure_endpoints(task, states, kind="forward", batches=lambda: data)
    for child, row in zip(children, matrix, strict=True):
        model.load_state_dict(child)
        found = ratios(measure(task.outputs, sites, data), target_moments(endpoints.moments, row.tolist()))
        assert all(abs(ratio - 1) < 0.02 for ratio in found.values())
