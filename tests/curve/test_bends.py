"""The gradient of every bend, against autograd through the whole curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from task.fake import Fake, Rows
from torch.func import functional_call
from train.small import SmallModel, small_model

from soupkit.curve.bends import Bends, CurvePoint
from soupkit.curve.curve import Curve, Kind

WEIGHT_DECAY = 0.1


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]


def batch() -> Rows:
    generator = torch.Generator().manual_seed(5)
    return Rows(torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64), torch.arange(8) % 10)


def double(seed: int) -> SmallModel:
    model = small_model(seed).double()
    model.drop.p = 0.0
    return model


def reference(curve: Curve, bends: Sequence[Sequence[torch.Tensor]], t: float) -> list[list[torch.Tensor]]:
    """Autograd of L(Σ c_j w_j) + ½ wd ‖Σ c_j w_j‖² with every bend a leaf: the definition, with B times the
    memory."""
    leaves = [[w.detach().clone().requires_grad_() for w in bend] for bend in bends]
    coefficients = curve.coefficients(t)
    point = [sum(float(c) * w for c, w in zip(coefficients, column)) for column in zip(*leaves)]
    model, rows = double(0).train(), batch()
    names = [name for name, _ in model.named_parameters()]
    logits = functional_call(model, dict(zip(names, point)), (rows.inputs,))
    penalty = sum(w.square().sum() for w in point)
    loss = torch.nn.functional.cross_entropy(logits, rows.labels) + 0.5 * WEIGHT_DECAY * penalty
    flat = [w for bend in leaves for w in bend]
    found = iter(torch.autograd.grad(loss, flat, allow_unused=True))
    return [[next(found) for _ in bend] for bend in leaves]


@pytest.mark.parametrize(
    ("kind", "num_bends"), [("bezier", 3), ("bezier", 5), ("polychain", 3), ("polychain", 4)]
)
@pytest.mark.parametrize("t", [0.0, 0.2, 0.9])
def test_every_bend_gets_the_gradient_of_the_definition(kind: Kind, num_bends: int, t: float) -> None:
    model, curve = double(0).train(), Curve(kind, num_bends)
    bends = Bends(weights(double(0)), weights(double(1)), curve, fix_start=False, fix_end=False)
    point_of = CurvePoint(Fake(model, loss=torch.nn.functional.cross_entropy), bends)
    point = point_of.at(t)
    point_of(point, batch()).backward()
    bends.take_gradient(t, point, weight_decay=WEIGHT_DECAY)
    expected = reference(curve, bends.bends, t)
    scale = max(float(g.abs().max()) for bend in expected for g in bend)
    assert scale > 0.01
    for bend, other in zip(bends.bends, expected):
        for weight, gradient in zip(bend, other):
            torch.testing.assert_close(weight.grad, gradient, rtol=1e-9, atol=1e-12)


def test_bends_start_on_the_straight_line_and_points_are_their_combinations() -> None:
    a, b = weights(small_model(0)), weights(small_model(1))
    bends = Bends(a, b, Curve("bezier", 4), fix_start=True, fix_end=True)
    for j in range(4):
        for found, start, end in zip(bends.bends[j], a, b):
            torch.testing.assert_close(found, ((1 - j / 3) * start + j / 3 * end))
    for t, end in ((0.0, a), (1.0, b)):
        assert all(torch.equal(found, weight) for found, weight in zip(bends.point(t), end))
    coefficients = Curve("bezier", 4).coefficients(0.3)
    for i, found in enumerate(bends.point(0.3)):
        expected = sum(float(c) * bend[i].detach().double() for c, bend in zip(coefficients, bends.bends))
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_fixed_ends_and_frozen_weights_get_no_gradient() -> None:
    model = small_model(0)
    model.head.weight.requires_grad_(False)
    learned = [p.detach().clone().requires_grad_(p.requires_grad) for p in model.parameters()]
    bends = Bends(learned, weights(small_model(1)), Curve("bezier", 3), fix_start=True, fix_end=False)
    point_of = CurvePoint(Fake(model), bends)
    point = point_of.at(0.4)
    point_of(point, Rows(torch.randn(4, 3, 16, 16), torch.zeros(4, 10))).backward()
    bends.take_gradient(0.4, point, weight_decay=0.0)
    frozen = [name for name, _ in model.named_parameters()].index("head.weight")
    for j, bend in enumerate(bends.bends):
        for i, weight in enumerate(bend):
            trained = j > 0 and i != frozen
            assert weight.requires_grad == trained
            assert (weight.grad is not None) == trained


def test_the_model_keeps_its_parameters_and_shares_its_statistics() -> None:
    model = small_model(0).train()
    before = weights(model)
    bends = Bends(
        weights(small_model(1)), weights(small_model(2)), Curve("bezier", 3), fix_start=True, fix_end=True
    )
    point_of = CurvePoint(Fake(model), bends)
    mean = model.norm.running_mean.clone()
    point_of(point_of.at(0.5), Rows(torch.randn(4, 3, 16, 16), torch.zeros(4, 10)))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert not torch.equal(mean, model.norm.running_mean)


def test_a_bend_is_written_into_a_model() -> None:
    model, target = small_model(0), small_model(3)
    bends = Bends(
        weights(model), weights(small_model(1)), Curve("polychain", 3), fix_start=True, fix_end=True
    )
    bends.write_into(target, 1)
    for found, a, b in zip(target.parameters(), weights(model), weights(small_model(1))):
        np.testing.assert_allclose(found.detach(), (a + b).detach() / 2, rtol=1e-5, atol=1e-7)
