"""EMAOptimizer over models of every kind: the whole averaged state, complex weights, copies and pickles."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train.small import small_model

from soupkit.errors import TaskError
from soupkit.merge.running import Ema, Swa
from soupkit.train.averaging import Averaging
from soupkit.train.ema import EMAOptimizer


class Tied(nn.Module):
    """An embedding and a head of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class Shared(nn.Module):
    """One module under two names, with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.b = self.a


class Extra(nn.Module):
    """Extra state, and a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scale: Any = {"amax": [1.0]}
        self.register_buffer("table", torch.ones(2), persistent=False)

    def get_extra_state(self) -> Any:
        return self.scale

    def set_extra_state(self, state: Any) -> None:
        self.scale = state


class Complex(nn.Module):
    """Complex weights beside real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
        self.wide = nn.Parameter(torch.randn(4, dtype=torch.complex128))
        self.real = nn.Parameter(torch.randn(2))


class Wrapped(nn.Module):
    """What DataParallel and torch.compile do to names."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Tied()


def parametrized() -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))


def compiled() -> nn.Module:
    return torch.compile(nn.Linear(3, 2), backend="eager")  # type: ignore[return-value]


MODELS: list[Callable[[], nn.Module]] = [
    Tied,
    Shared,
    Extra,
    Complex,
    Wrapped,
    parametrized,
    compiled,
    small_model,
]
each_model = pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def train(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    """Steps with gradients of one, which need no forward pass."""
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


def wrapped(model: nn.Module, **options: Any) -> EMAOptimizer:
    return EMAOptimizer(sgd(model), model, **({"decay": 0.75} | options))


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value, name


@each_model
def test_the_averaged_state_is_whole_and_loads_strictly(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    optimizer = wrapped(model)
    train(model, optimizer)
    state = optimizer.ema_state_dict()
    assert state.keys() == model.state_dict().keys()
    other = make()
    other.load_state_dict(state, strict=True)
    live = copy.deepcopy(model.state_dict())
    with optimizer.swap_ema_weights():
        assert_same(dict(state), dict(_whole(model)))
    assert_same(dict(model.state_dict()), live)
    changed = [
        name
        for name, value in state.items()
        if isinstance(value, Tensor) and not torch.equal(value, live[name])
    ]
    assert changed


def _whole(model: nn.Module) -> dict[str, Any]:
    """What the model holds, where its own state_dict() is guarded."""
    names = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    extra = {"_extra_state": model.scale} if isinstance(model, Extra) else {}
    return {**{name: tensor for name, tensor in names.items() if name != "table"}, **extra}


def test_the_copy_shares_nothing_with_the_model_but_keeps_its_ties() -> None:
    model = Tied()
    optimizer = wrapped(model)
    train(model, optimizer)
    state = optimizer.ema_state_dict()
    assert state["embed.weight"] is state["head.weight"]
    before = state["embed.weight"].clone()
    train(model, optimizer)
    assert torch.equal(state["embed.weight"], before)
    extra = Extra()
    optimizer = wrapped(extra)
    train(extra, optimizer)
    state = optimizer.ema_state_dict()
    extra.scale["amax"].append(2.0)
    assert state["_extra_state"] == {"amax": [1.0]}


def test_the_guard_is_back_after_the_state_was_taken() -> None:
    model = Tied()
    optimizer = wrapped(model)
    train(model, optimizer)
    with optimizer.swap_ema_weights():
        with pytest.raises(TaskError, match="the model holds its average now"):
            model.state_dict()
        with pytest.raises(TaskError, match="swapped in again"):
            optimizer.ema_state_dict()
    optimizer.ema_state_dict()
    model.state_dict()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("swa", [False, True])
def test_complex_weights_are_averaged_as_pairs_of_real_ones(asynchronous: bool, swa: bool) -> None:
    torch.manual_seed(0)
    model = Complex()
    rule = Swa(0, 1) if swa else Ema(0.75)
    optimizer, averaging = sgd(model), Averaging(model, rule, asynchronous=asynchronous)
    averaging.attach(optimizer)
    optimizer.register_step_post_hook(lambda *_: averaging.update())
    twin = nn.ParameterDict({n: nn.Parameter(_pairs(p).clone()) for n, p in model.named_parameters()})
    pairs = Averaging(twin, rule)
    for number in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(
                parameter, complex(number, 1) if parameter.is_complex() else number
            )
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                twin[name].copy_(_pairs(parameter))
        pairs.update()
    found, expected = averaging.averaged_state(), pairs.averaged_state()
    for name, tensor in found.items():
        assert torch.equal(_pairs(tensor), expected[name])
        assert not torch.equal(tensor, model.state_dict()[name])


def _pairs(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def by_torch_save(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, by_pickle, by_torch_save]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("make", [Tied, Shared, Complex])
def test_a_copy_trains_and_averages_its_own_model(
    make: Callable[[], nn.Module], duplicate: Callable[[Any], Any], asynchronous: bool
) -> None:
    """Both go the same way as one that never was copied, and neither moves the other."""
    torch.manual_seed(0)
    model = make()
    optimizer = wrapped(model, gamma=1.0, asynchronous=asynchronous)
    train(model, optimizer)
    other = duplicate(optimizer)
    own = other.averaging.source
    assert own is not model
    before = copy.deepcopy(optimizer.ema_state_dict())
    train(own, other, 2)
    assert_same(dict(optimizer.ema_state_dict()), dict(before))
    assert other.averaging.num_steps == 5
    train(model, optimizer, 2)
    assert_same(dict(other.ema_state_dict()), dict(optimizer.ema_state_dict()))
    assert_same(dict(own.state_dict()), dict(model.state_dict()))
    assert other.state_dict()["soupkit.ema"]["num_steps"] == 5


def test_a_copy_together_with_the_model_belongs_to_that_copy() -> None:
    model = Tied()
    optimizer = wrapped(model)
    train(model, optimizer)
    twin, other = copy.deepcopy((model, optimizer))
    assert other.averaging.source is twin
    train(twin, other)
    assert other.averaging.num_steps == 6
    assert optimizer.averaging.num_steps == 3


def test_what_cannot_be_copied_says_so() -> None:
    model = Tied()
    optimizer = wrapped(model)
    train(model, optimizer)
    with pytest.raises(TaskError, match="cannot share one optimizer"):
        copy.copy(optimizer)
    with pytest.raises(TaskError, match="cannot share one model's average"):
        copy.copy(optimizer.averaging)
    with optimizer.swap_ema_weights(), pytest.raises(TaskError, match="cannot be copied while it is swapped"):
        copy.deepcopy(optimizer)
    assert not hasattr(optimizer, "nothing_of_the_kind")
