"""EMAOptimizer: a drop-in for training loops of others; nothing is lost on resume or mixed up when saving."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from train.small import SmallModel, small_model

from soupkit.errors import TaskError
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


def test_schedulers_and_scalers_hold_the_inner_one() -> None:
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
