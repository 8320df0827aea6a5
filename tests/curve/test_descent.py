"""The loop of curves and cycles: rates, epochs, progress, and going on where it ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from task.fake import Rows

from soupkit.curve.descent import Descent
from soupkit.errors import TaskError
from soupkit.events import Advanced, Event, silent


def batches(num: int) -> Iterator[tuple[Any, Rows]]:
    for number in range(num):
        size = 1 + number % 2
        yield number, Rows(torch.full((size, 1), float(number)), torch.ones(size, 1))


def descent(weight: torch.Tensor, **values: Any) -> Descent:
    def gradient(number: int, batch: Rows) -> torch.Tensor:
        weight.grad = torch.ones_like(weight)
        return batch.inputs.mean()

    optimizer = torch.optim.SGD([weight], lr=1.0)
    return Descent(gradient, optimizer, lambda update: 0.1 * (update + 1), 2, 3, **values)


def test_every_update_has_its_own_rate_and_epochs_their_mean_loss() -> None:
    weight, events, seen = torch.zeros(1, requires_grad=True), list[Event](), list[int]()
    run = descent(weight)
    run.run(batches(6), events.append, after=seen.append)
    assert float(weight.detach()) == pytest.approx(-0.1 * (1 + 2 + 3 + 4 + 5 + 6))
    # batches of 1 and 2 examples in turn; the loss of a batch is its number
    assert run.losses == pytest.approx([(0 + 2 * 1) / 3, (2 + 2 * 3) / 3, (4 + 2 * 5) / 3])
    assert seen == [1, 2, 3, 4, 5, 6]
    assert sum(event.by for event in events if isinstance(event, Advanced)) == 6


def test_it_goes_on_where_it_ended() -> None:
    weight = torch.zeros(1, requires_grad=True)
    run = descent(weight, num_done=4, losses=[1.0, 2.0])
    run.run(list(batches(6))[4:], silent)
    assert float(weight.detach()) == pytest.approx(-0.1 * (5 + 6))
    assert run.losses == pytest.approx([1.0, 2.0, (4 + 10) / 3])


def test_the_gradient_is_clipped() -> None:
    weight = torch.zeros(4, requires_grad=True)  # its gradient of ones has the norm 2
    descent(weight, clip_grad=1.0).run(list(batches(1)), silent)
    torch.testing.assert_close(weight.detach(), torch.full((4,), -0.05), rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    weight = torch.zeros(1, requires_grad=True)
    broken = [(0, Rows(torch.tensor([[float("nan")]]), torch.ones(1, 1)))] * 2
    with pytest.raises(TaskError, match="became nan in epoch 1 of 3"):
        descent(weight).run(broken, silent)
