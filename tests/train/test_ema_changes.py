"""EMAOptimizer where models change, are saved in parts or copied while swapped, or are not the ones that are
trained."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soupkit.errors import TaskError
from soupkit.merge.running import Ema
from soupkit.train.averaging import Averaging
from soupkit.train.ema import EMAOptimizer


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))


def wrapped(model: nn.Module, **options: Any) -> EMAOptimizer:
    return EMAOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), model, **({"decay": 0.5} | options))


def train(model: nn.Module, optimizer: Any, steps: int = 2) -> None:
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


def grow(model: nn.Sequential, optimizer: EMAOptimizer) -> None:
    model.append(nn.Linear(3, 2))
    optimizer.add_param_group({"params": list(model[-1].parameters())})


def shrink(model: nn.Sequential, _: EMAOptimizer) -> None:
    del model[1]


def tie(model: nn.Sequential, _: EMAOptimizer) -> None:
    model[1].weight = model[0].weight


def widen(model: nn.Sequential, optimizer: EMAOptimizer) -> None:
    model[1].weight = nn.Parameter(torch.zeros(4, 3))
    optimizer.param_groups[0]["params"][2] = model[1].weight


def untrack(model: nn.Sequential, _: EMAOptimizer) -> None:
    model[1].register_parameter("bias", None)


@pytest.mark.parametrize("change", [grow, shrink, tie, widen, untrack])
def test_a_model_that_changes_is_not_half_averaged(change: Callable[..., None]) -> None:
    """What came later would be the live weights among averaged ones."""
    model = two_layers()
    optimizer = wrapped(model)
    train(model, optimizer)
    change(model, optimizer)

    def go_on() -> dict[str, Any]:
        train(model, optimizer)
        return optimizer.ema_state_dict()

    with pytest.raises(TaskError, match=r"other tensors than when|has the shape \[4, 3\] now"):
        go_on()


@pytest.mark.parametrize("part", ["0", "1", ""])
def test_no_part_of_a_swapped_model_is_saved(part: str) -> None:
    """As `ddp.module.state_dict()` of a wrapper whose average is swapped in."""
    model = two_layers()
    optimizer = wrapped(model)
    train(model, optimizer)
    with optimizer.swap_ema_weights():
        with pytest.raises(TaskError, match="would pass for"):
            model.get_submodule(part).state_dict()
        with pytest.raises(TaskError, match="would pass for"):
            torch.save(model, io.BytesIO())
    model.get_submodule(part).state_dict()
    torch.save(model, io.BytesIO())


def test_a_copy_of_a_swapped_model_is_the_averaged_model_and_can_be_saved() -> None:
    model = two_layers()
    optimizer = wrapped(model)
    train(model, optimizer)
    with optimizer.swap_ema_weights():
        best = copy.deepcopy(model)
    for found in (best, pickle.loads(pickle.dumps(best))):
        for name, tensor in optimizer.ema_state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor)
            assert not torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("nested", [False, True])
def test_two_averages_of_one_optimizer_are_both_saved(nested: bool) -> None:
    def both(model: nn.Module) -> tuple[EMAOptimizer, EMAOptimizer]:
        inner = torch.optim.SGD(model.parameters(), lr=0.5)
        first = EMAOptimizer(inner, model, decay=0.5)
        return first, EMAOptimizer(first if nested else inner, model, decay=0.9)  # type: ignore[arg-type]

    model, other = two_layers(), two_layers()
    averages, resumed = both(model), both(other)
    train(model, averages[1], 3)
    other.load_state_dict(model.state_dict())
    resumed[1].load_state_dict(averages[1].state_dict())
    for one, again in zip(averages, resumed, strict=True):
        assert one.averaging.num_steps == again.averaging.num_steps == 3
        found = again.ema_state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in one.ema_state_dict().items())
    assert not torch.equal(averages[0].ema_state_dict()["0.bias"], averages[1].ema_state_dict()["0.bias"])


def test_the_average_of_a_model_that_is_not_trained_is_refused() -> None:
    model, other = two_layers(), two_layers()
    with pytest.raises(TaskError, match="none of the model's parameters"):
        EMAOptimizer(torch.optim.SGD(model.parameters(), lr=0.5), other)
    EMAOptimizer(torch.optim.SGD(model[1].parameters(), lr=0.5), model)


def test_ignore_means_tensors_by_any_name_and_never_nothing() -> None:
    model = two_layers()
    model[1].weight = model[0].weight
    assert wrapped(model, ignore=[r"^1\.weight"]).averaging.names == ["0.bias", "1.bias"]
    with pytest.raises(TaskError, match="'haed', which matches no tensor"):
        wrapped(model, ignore=["bias", "haed"])


def with_buffer(tensor: Tensor) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("table", tensor)
    return model


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(1).expand(3), "repeats its elements"),
        (torch.ones(3, dtype=torch.complex64).conj(), "is a conjugate"),
    ],
)
def test_what_no_average_can_be_written_into_is_refused_before_training(tensor: Tensor, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        wrapped(with_buffer(tensor))


def test_codes_and_models_without_weights() -> None:
    codes = torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn)
    model = with_buffer(codes)
    optimizer = wrapped(model)
    train(model, optimizer)
    assert torch.equal(optimizer.ema_state_dict()["table"].float(), codes.float())
    norm = nn.BatchNorm1d(2, affine=False)
    averaging = Averaging(norm, Ema(0.5), asynchronous=True)
    for value in (0.0, 4.0):
        norm.running_mean.fill_(value)  # type: ignore[union-attr]
        averaging.update()
    assert averaging.averaged_state()["running_mean"].tolist() == [2, 2]


def test_a_lazy_model_is_averaged_from_its_first_step_on() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    optimizer = wrapped(model)
    model(torch.ones(2, 2))
    train(model, optimizer)
    assert optimizer.ema_state_dict()["0.weight"].shape == (3, 2)
