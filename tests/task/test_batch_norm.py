"""Refreshed statistics against torch's own update_bn and against a formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from task.fake import Fake, Rows
from timm.layers import BatchNormAct2d
from torch.optim.swa_utils import update_bn

from soupkit.errors import TaskError
from soupkit.task.batch_norm import refresh
from soupkit.task.images.models import build, parse_model


def refreshed(model: torch.nn.Module, batches: Any) -> list[str]:
    return refresh(model, batches, Fake(model).outputs)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4, momentum=0.3),
        torch.nn.Dropout(0.5),
        BatchNormAct2d(4),
        torch.nn.Flatten(),
        torch.nn.LazyBatchNorm1d(affine=False, momentum=None),
        torch.nn.BatchNorm1d(4 * 36, track_running_stats=False),
    )


def batches(*sizes: int) -> list[Rows]:
    random = torch.Generator().manual_seed(1)
    return [Rows(torch.randn(n, 3, 8, 8, generator=random) + i, torch.zeros(n)) for i, n in enumerate(sizes)]


def initialised() -> torch.nn.Module:
    model = network()
    model.train()
    model(torch.randn(4, 3, 8, 8))
    return model.eval()


def test_equal_batches_give_what_update_bn_gives() -> None:
    ours, theirs = initialised(), initialised()
    theirs[2].p = 0.0  # update_bn would drop activations
    refreshed(ours, batches(8, 8, 8))
    update_bn([batch.inputs for batch in batches(8, 8, 8)], theirs)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_unequal_batches_count_for_what_they_hold() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    data = batches(10, 3, 1)
    refreshed(model, data)
    means = [batch.inputs.mean((0, 2, 3)) for batch in data[:2]]
    variances = [batch.inputs.transpose(0, 1).flatten(1).var(1) for batch in data[:2]]
    torch.testing.assert_close(model[0].running_mean, (10 * means[0] + 3 * means[1]) / 13)
    torch.testing.assert_close(model[0].running_var, (10 * variances[0] + 3 * variances[1]) / 13)
    assert model[0].num_batches_tracked == 2


def test_modes_momenta_and_weights_are_as_before() -> None:
    model = initialised()
    model[2].train()
    modes = [module.training for module in model.modules()]
    momenta = [getattr(module, "momentum", 0) for module in model.modules()]
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    names = refreshed(model, batches(4, 4))
    assert [module.training for module in model.modules()] == modes
    assert [getattr(module, "momentum", 0) for module in model.modules()] == momenta
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())
    assert names == [
        f"{i}.{buffer}"
        for i in (1, 3, 5)
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    ]


def test_names_are_those_of_the_checkpoint() -> None:
    model = build(parse_model("timm:test_resnet,num_classes=3"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = refreshed(model, [Rows(torch.randn(4, 3, 32, 32), torch.zeros(4))])
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(names) != set()


def test_without_batch_norm_nothing_is_read() -> None:
    def explode() -> object:
        raise AssertionError("read")
        yield

    assert refreshed(torch.nn.Linear(2, 2), explode()) == []


def test_a_layer_that_no_batch_reaches_keeps_its_statistics() -> None:
    class WithHead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.auxiliary = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.body(images)

    model = WithHead().eval()
    for layer in (model.body, model.auxiliary):
        layer.running_mean.fill_(7)
    names = refreshed(model, batches(8))
    assert {name.partition(".")[0] for name in names} == {"body"}
    assert model.auxiliary.running_mean.tolist() == [7, 7, 7]
    assert model.body.num_batches_tracked == 1
    assert not model.body._forward_pre_hooks


def test_an_interruption_restores_the_modes() -> None:
    model = initialised()

    def broken() -> object:
        yield from batches(4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refreshed(model, broken())
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.3


def test_batches_of_one_are_not_enough() -> None:
    with pytest.raises(TaskError, match="two examples"):
        refreshed(initialised(), batches(1, 1))
