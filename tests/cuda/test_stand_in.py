"""The stand-in refuses what a device refuses, and sees what it would get wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cuda.stand_in import CUDA, StandIn
from torch import Tensor

TOGETHER = "on the same device"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda there, here: there + here, TOGETHER),
        (lambda there, here: torch.cat([there, here]), TOGETHER),
        (lambda there, here: here[there.long()], TOGETHER),
        (lambda there, here: torch.nn.functional.linear(here[None], there[None]), TOGETHER),
        (lambda there, here: there.numpy(), "convert cuda:0"),
        (lambda there, here: np.asarray(there), "convert cuda:0"),
        (lambda there, here: torch.ones(1 << 20, device=CUDA), "out of memory"),
    ],
)
def test_what_a_device_refuses(wrong: Callable[[Tensor, Tensor], object], message: str) -> None:
    with StandIn(capacity=1 << 20):
        there, here = torch.ones(3, device=CUDA), torch.ones(3)
        with pytest.raises((RuntimeError, TypeError), match=message):
            wrong(there, here)


def test_what_a_device_allows() -> None:
    with StandIn():
        there, here = torch.arange(3.0, device=CUDA), torch.ones(3)
        assert (there * torch.tensor(2.0)).device == there[here.long()].device == there.new_zeros(2).device
        assert here.to(there).is_cuda
        assert torch.zeros_like(there, device="cpu").is_cpu
        assert there.cpu().numpy().tolist() == there.tolist() == [0, 1, 2]
        here.copy_(there)
        assert here.device.type == "cpu"
        gradient = torch.autograd.grad((there.requires_grad_() ** 2).sum(), there)[0]
        assert gradient.device == CUDA


def test_memory_is_counted() -> None:
    with StandIn() as stand_in:
        kept = torch.ones(1000, device=CUDA)
        gone = kept + 1
        view = kept[:10]
        assert torch.cuda.memory_allocated() == 8000
        del gone
        assert torch.cuda.memory_allocated() == 4000
        assert stand_in.storages.peak == 8000
        assert view.device == CUDA


def test_streams_that_do_not_wait_are_found() -> None:
    with StandIn():
        here, side = torch.cuda.current_stream(), torch.cuda.Stream(CUDA)
        values = torch.ones(3, device=CUDA)
        with torch.cuda.stream(side), pytest.raises(RuntimeError, match="race: stream 1"):
            values.sum()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            total = values.sum()
        with pytest.raises(RuntimeError, match="race: stream 0"):
            values.add_(1)
        here.wait_stream(side)
        values.add_(1)
        assert float(total) == 3


@pytest.mark.parametrize("recorded", [False, True])
def test_memory_that_is_given_away_too_early_is_found(recorded: bool) -> None:
    with StandIn():
        side, values = torch.cuda.Stream(CUDA), torch.ones(3, device=CUDA)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            kept = values.sum()
        if recorded:
            values.record_stream(side)
        del values
        if recorded:
            torch.ones(3, device=CUDA)
        else:
            with pytest.raises(RuntimeError, match="freed while it was in use"):
                torch.ones(3, device=CUDA)
        del kept


def test_a_copy_that_nobody_waited_for_has_not_arrived() -> None:
    with StandIn():
        target, event = torch.zeros(3, pin_memory=True), torch.cuda.Event()
        target.copy_(torch.ones(3, device=CUDA), non_blocking=True)
        event.record()
        assert target.isnan().all()
        event.synchronize()
        assert target.tolist() == [1, 1, 1]
