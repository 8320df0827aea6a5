"""EMAOptimizer: a drop-in for training loops of others; nothing is lost on resume or mixed up when saving."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train.small import SmallModel, small_model

from soupkit.errors import RecipeError, TaskError
from soupkit.merge.running import Bema, Planned, Swa
from soupkit.merge.trajectory import decayed, linear
from soupkit.train.ema import KEY, EMAOptimizer


def wrapped(model: SmallModel, **options: Any) -> EMAOptimizer:
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return EMAOptimizer(inner, model, **({"decay": 0.9} | options))


def step(model: SmallModel, optimizer: Any, number: int) -> None:
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(number)
        model(images).square().mean().backward()
    optimizer.step()


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_it_averages_with_every_step_and_leaves_training_alone(asynchronous: bool) -> None:
    model, plain = small_model(), small_model()
    optimizer, alone = (
        wrapped(model, asynchronous=asynchronous),
        torch.optim.AdamW(plain.parameters(), lr=1e-2),
    )
    theirs = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for number in range(6):
        step(model, optimizer, number)
        step(plain, alone, number)
        theirs.update_parameters(plain)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    for name, tensor in optimizer.ema_state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, theirs.module.state_dict()[name])


def test_schedulers_and_scalers_may_hold_the_inner_one() -> None:
    model = small_model()
    optimizer = wrapped(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 1, gamma=0.5)
    step(model, optimizer.optimizer, 0)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 5e-3
    assert optimizer.averaging.num_steps == 1
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for scale, counted in ((1.0, 2), (float("inf"), 2)):  # a step whose gradients overflow is skipped
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 3, 16, 16)).square().mean() * scale).backward()
        scaler.step(optimizer.optimizer)
        scaler.update()
        assert optimizer.averaging.num_steps == counted


def test_a_resume_by_way_of_a_file_is_exact() -> None:
    model = small_model()
    optimizer = wrapped(model, gamma=1.0, decay=0.999)
    for number in range(4):
        step(model, optimizer, number)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    for number in range(4, 8):
        step(model, optimizer, number)
    again = small_model(seed=3)
    resumed = wrapped(again, gamma=1.0, decay=0.999)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.averaging.num_steps == 4
    for number in range(4, 8):
        step(again, resumed, number)
    for name, tensor in optimizer.ema_state_dict().items():
        assert torch.equal(resumed.ema_state_dict()[name], tensor), name
        assert torch.equal(again.state_dict()[name], model.state_dict()[name])


def test_weights_and_statistics_are_swapped_and_nothing_is_saved_meanwhile() -> None:
    model = small_model()
    optimizer = wrapped(model)
    for number in range(3):
        step(model, optimizer, number)
    raw, average = {k: v.clone() for k, v in model.state_dict().items()}, optimizer.ema_state_dict()
    with optimizer.swap_ema_weights():
        assert torch.equal(model.conv.weight, average["conv.weight"])
        assert torch.equal(model.norm.running_var, average["norm.running_var"])
        for refused in (optimizer.state_dict, model.state_dict, optimizer.ema_state_dict):
            with pytest.raises(TaskError, match=r"swap|average"):
                refused()
        with pytest.raises(TaskError):
            optimizer.step()
        assert torch.equal(model.conv.weight, average["conv.weight"]), (
            "the refused step must not have moved it"
        )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in raw.items())
    assert not torch.equal(raw["norm.running_var"], average["norm.running_var"])


def test_a_state_without_average_is_not_taken_for_one() -> None:
    model = small_model()
    plain = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step(model, plain, 0)
    saved = plain.state_dict()
    assert KEY not in saved
    with pytest.raises(TaskError, match="saved without EMA"):
        wrapped(model).load_state_dict(saved)
    with_average = wrapped(model).state_dict()
    plain.load_state_dict(with_average)  # the way back is open: torch ignores what it does not know


def test_it_is_an_optimizer_to_schedulers_and_scalers() -> None:
    model, plain = small_model(), small_model()
    optimizer, alone = wrapped(model), torch.optim.AdamW(plain.parameters(), lr=1e-2)
    assert isinstance(optimizer, torch.optim.Optimizer)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, 8) for each in (optimizer, alone)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0) for _ in range(2)]
    for number in range(4):
        inputs = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        factor = float("inf") if number == 2 else 1.0  # that step is skipped, and not averaged
        for net, each, scaler, schedule in zip((model, plain), (optimizer, alone), scalers, schedules):
            each.zero_grad()
            with torch.random.fork_rng():
                torch.manual_seed(number)
                scaler.scale(net(inputs).square().mean() * factor).backward()
            scaler.step(each)
            scaler.update()
            schedule.step()
    assert optimizer.averaging.num_steps == 3
    assert optimizer.param_groups is optimizer.optimizer.param_groups
    assert optimizer.param_groups[0]["lr"] == alone.param_groups[0]["lr"]
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_closures_groups_and_copies() -> None:
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    holder = torch.nn.ParameterList([first, second])
    optimizer = EMAOptimizer(torch.optim.SGD([first], lr=0.5), holder, half_life=1)
    optimizer.add_param_group({"params": [second], "lr": 0.25})

    def closure() -> float:
        optimizer.zero_grad()
        loss = (first + second).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert optimizer.step(closure) == 2.5
    assert "SGD" in repr(optimizer)
    averages = optimizer.ema_state_dict()
    assert averages["0"].tolist() == [0.25, 0.25]  # halfway from 0.5 to 0
    assert averages["1"].tolist() == [0.625, 0.625]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    copied, scheduled = copy.deepcopy((optimizer, schedule))
    assert scheduled.optimizer is copied
    copied.step()
    assert copied.averaging.num_steps == 3
    assert optimizer.averaging.num_steps == 2


def trl_bema(weights: list[torch.Tensor], every: int, after: int) -> torch.Tensor:
    """The published algorithm at the last step that it takes: burn-in, β_t = (ρ + t)^−½, α_t = (ρ +
    t)^−0.2."""
    for step, weight in enumerate(weights, start=1):
        if step == after:
            origin, average = weight.double(), weight.double()
        elif step > after and (step - after) % every == 0:
            average = average + (10 + step) ** -0.5 * (weight.double() - average)
            result = average + (10 + step) ** -0.2 * (weight.double() - origin)
    return result


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_bema_is_the_published_algorithm_and_resumes(buffers: Any) -> None:
    def made(seed: int) -> tuple[SmallModel, EMAOptimizer]:
        model = small_model(seed=seed)
        inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, EMAOptimizer(inner, model, rule=Bema(every=2, start=2), buffers=buffers)

    model, optimizer = made(0)
    seen = []
    for number in range(8):
        step(model, optimizer, number)
        seen.append(model.conv.weight.detach().clone())
        if number == 4:
            saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    average = optimizer.ema_state_dict()
    torch.testing.assert_close(average["conv.weight"].double(), trl_bema(seen, 2, 2), rtol=1e-5, atol=1e-6)
    assert (average["norm.running_var"] > 0).all()
    again, resumed = made(3)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for number in range(5, 8):
        step(again, resumed, number)
    for name, tensor in average.items():
        assert torch.equal(resumed.ema_state_dict()[name], tensor), name
    with pytest.raises(TaskError, match="another rule"):
        wrapped(small_model()).load_state_dict(saved["optimizer"])


def test_a_decay_is_planned_and_met() -> None:
    """Planned coefficients of a decay, stepped, are what merging the same checkpoints gives."""
    steps = (2, 3, 6)
    column = decayed(linear, np.array(steps, float))
    model = small_model()
    inner = torch.optim.SGD(model.parameters(), lr=1e-2)
    optimizer = EMAOptimizer(inner, model, rule=Planned(steps, tuple(column.tolist())))
    seen = []
    for number in range(8):
        step(model, optimizer, number)
        seen.append(model.conv.weight.detach().double())
    merged = sum(c * seen[k - 1] for c, k in zip(column, steps))
    torch.testing.assert_close(
        optimizer.ema_state_dict()["conv.weight"].double(), merged, rtol=1e-5, atol=1e-7
    )


def test_what_contradicts_itself_is_refused() -> None:
    for options in ({"rule": Swa(), "decay": 0.9}, {"half_life": 2.0, "decay": 0.9}):
        with pytest.raises(TaskError, match="decay"):
            wrapped(small_model(), **options)
    for coefficients in ((1.0,), (0.0, 1.0), (1.0, -2.0)):
        with pytest.raises(RecipeError, match="coefficients"):
            Planned((1, 2), coefficients)
