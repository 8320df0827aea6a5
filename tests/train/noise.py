"""Training on noise, for what watches weights move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def copy_of(tensors: Mapping[str, Tensor]) -> State:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


def images(number: int) -> Tensor:
    return torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(number)).double()


def training(
    model: nn.Module, num_steps: int, *, release: Callable[[], None] = lambda: None, first: int = 0
) -> Iterator[int]:
    """Train on noise; yields after each optimizer step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for step in range(first, first + num_steps):
        optimizer.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(step)
            model(images(step).to(next(model.parameters()).dtype)).square().mean().backward()
        release()
        optimizer.step()
        yield step
