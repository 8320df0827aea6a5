"""Averaging: the numbers of torch, of timm and of the closed forms."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm.utils
import torch
from task.fake import Fake, Rows
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn
from train.noise import copy_of, equal, images, training
from train.small import small_model

from soupkit.merge.running import Ema, PowerEma, Rule, Swa, coefficients
from soupkit.task.batch_norm import refresh
from soupkit.train.averaging import Averaging

CPU = torch.device("cpu")


class Tied(nn.Module):
    """A tied weight, a buffer that is not saved, and an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("count", torch.tensor(0))


@pytest.mark.parametrize("rule", [Ema(0.9), Ema(0.9, every=2, start=3, gamma=1.0), Swa(2, 3), PowerEma(6.94)])
def test_the_average_is_the_mixture_of_what_it_saw(rule: Rule) -> None:
    model = small_model().double()
    averaging = Averaging(model, rule)
    seen = []
    for _ in training(model, 11):
        averaging.update()
        seen.append(copy_of(model.state_dict()))
    column = coefficients(rule, 11)
    for name, tensor in averaging.tensors().items():
        if tensor.is_floating_point():
            wanted = sum(c * state[name] for c, state in zip(column, seen))
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-14)
        else:
            assert torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize(("kind", "with_buffers"), [("ema", False), ("ema", True), ("swa", False)])
def test_torchs_averaged_model_gets_the_same(kind: str, with_buffers: bool) -> None:
    """Exactly for EMA. Integers are torch's trap: with buffers it averages counters, and its SWA fails on
    them."""
    model = small_model().double()
    rule: Rule = Ema(0.9) if kind == "ema" else Swa()
    function = get_ema_multi_avg_fn(0.9) if kind == "ema" else get_swa_multi_avg_fn()
    theirs = AveragedModel(model, multi_avg_fn=function, use_buffers=with_buffers)
    ours = Averaging(model, rule, buffers="average" if with_buffers else "copy")
    for _ in training(model, 6):
        theirs.update_parameters(model)
        ours.update()
    found, wanted = ours.tensors(), theirs.module.state_dict()
    assert list(found) == list(wanted)
    for name in found:
        if name == "norm.num_batches_tracked":
            assert found[name] == 6
        else:
            atol = 0 if kind == "ema" else 1e-9  # torch's 1/(n + 1) of SWA is a float32
            torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=atol)


def test_timms_ema_gets_the_same() -> None:
    model = small_model().double()
    theirs = timm.utils.ModelEmaV3(
        model, decay=0.95, use_warmup=True, warmup_gamma=2.0, warmup_power=0.8, foreach=True
    )
    ours = Averaging(model, Ema(0.95, gamma=2.0, power=0.8))
    for step in training(model, 9):
        theirs.update(model, step=step + 1)
        ours.update()
    found, wanted = ours.tensors(), theirs.module.state_dict()
    for name in found:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-15)


def test_refreshed_statistics_are_those_of_update_bn() -> None:
    model = small_model().double()
    model.drop.p = 0.0  # update_bn leaves dropout on; soupkit's refresh does not
    averaging = Averaging(model, Swa(1, 2), buffers="refresh")
    theirs = AveragedModel(model)
    for step in training(model, 5):
        averaging.update()
        if step in (2, 4):
            theirs.update_parameters(model)
    batches = [Rows(images(number), torch.zeros(16)) for number in range(100, 104)]
    update_bn([batch.inputs for batch in batches], theirs)
    raw = copy_of(model.state_dict())
    found = averaging.averaged_state(refresh=lambda inner: refresh(inner, batches, Fake(inner).outputs))
    for name, tensor in found.items():
        if name != "norm.num_batches_tracked":
            torch.testing.assert_close(tensor, theirs.module.state_dict()[name], rtol=1e-12, atol=1e-14)
    assert not torch.equal(found["norm.running_mean"], raw["norm.running_mean"])
    assert equal(model.state_dict(), raw)


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    """In bfloat16, 1 + 0.001 · (2 − 1) is 1: the average would never move."""
    weight = torch.ones(5, dtype=torch.bfloat16)
    averaging = Averaging({"w": weight}, Ema(0.999))
    averaging.update()
    weight.fill_(2)
    for _ in range(1000):
        averaging.update()
    assert averaging.tensors()["w"].dtype == torch.float32
    torch.testing.assert_close(averaging.tensors()["w"], torch.full((5,), 2 - 0.999**1000), rtol=1e-4, atol=0)
    assert averaging.averaged_state()["w"].dtype == torch.bfloat16
    with averaging.swapped():
        assert weight[0] == torch.tensor(2 - 0.999**1000).bfloat16()
    assert (weight == 2).all()


def test_ties_scratch_and_integers() -> None:
    model = Tied()
    averaging = Averaging(model, Ema(0.5))
    averaging.update()
    with torch.no_grad():
        model.head.weight += 2
        model.count += 5
    averaging.update()
    assert list(averaging.tensors()) == ["count", "embed.weight"]
    assert averaging.tensors()["count"] == 5
    torch.testing.assert_close(averaging.tensors()["embed.weight"], model.embed.weight - 1)
    with averaging.swapped():
        assert model.head.weight is model.embed.weight


def test_ignored_names_stay_live() -> None:
    model = small_model()
    averaging = Averaging(model, Ema(0.5), ignore=(r"^head\.",))
    for _ in training(model, 3):
        averaging.update()
    same = {
        name for name, tensor in averaging.tensors().items() if torch.equal(tensor, model.state_dict()[name])
    }
    assert same - {"conv.bias"} == {
        "head.weight",
        "head.bias",
        "norm.num_batches_tracked",
    }  # batch norm holds that bias


def test_members_in_one_stack_are_averaged_as_each_alone() -> None:
    models = [small_model(seed) for seed in range(3)]
    stacked = {
        name: torch.stack([model.state_dict()[name] for model in models]) for name in models[0].state_dict()
    }
    together = Averaging(stacked, Ema(0.8, gamma=1.0))
    alone = [Averaging(model, Ema(0.8, gamma=1.0)) for model in models]
    for _ in range(4):
        for k, model in enumerate(models):
            next(training(model, 1))
            for name, tensor in model.state_dict().items():
                stacked[name][k].copy_(tensor)
            alone[k].update()
        together.update()
    for k, single in enumerate(alone):
        for name, tensor in single.tensors().items():
            assert torch.equal(together.tensors()[name][k], tensor)


def test_the_average_never_leaves_the_range_of_what_it_saw() -> None:
    weight = torch.zeros(1000)
    averaging = Averaging({"w": weight}, Ema(0.7, gamma=3.0))
    low, high = torch.full((1000,), torch.inf), torch.full((1000,), -torch.inf)
    path = torch.randn(30, 1000, generator=torch.Generator().manual_seed(0)).cumsum(0)
    for _, live in pairwise([weight.clone(), *path]):
        weight.copy_(live)
        low, high = torch.minimum(low, live), torch.maximum(high, live)
        averaging.update()
        average = averaging.tensors()["w"]
        assert (average >= low - 1e-6).all()
        assert (average <= high + 1e-6).all()
