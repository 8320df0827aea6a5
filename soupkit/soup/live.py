"""`LiveModel`: a model whose weights and gradients are two flat vectors, so that soups are written into it in
place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from soupkit.checkpoint.header import Slot
from soupkit.errors import DivergedError
from soupkit.soup.blocks import Layout, lay_out
from soupkit.task.task import MOST_TOGETHER, Batch, Task
from soupkit.world import World

LOWER_RATE = (
    "lower the learning rate (--lr), leave it to its default (with --step block), or clip (--clip-grad 1)"
)


def parameters_of(task: Task, slots: Mapping[str, Slot]) -> dict[str, nn.Parameter]:
    """The parameters that lie in the span: those of the model under the checkpoint's names, tied ones once.

    Buffers and integers stay outside. Names are in the model's order, since blocks of N parameters follow it.
    """
    found, seen = {}, set()
    for name, parameter in task.parameters().items():
        if name in slots and id(parameter) not in seen and parameter.is_floating_point():
            seen.add(id(parameter))
            found[name] = parameter
    return found


def layout_of(task: Task, slots: Mapping[str, Slot], blocks: str) -> Layout:
    """The span of a task's model, cut into blocks."""
    return lay_out({name: parameter.shape for name, parameter in parameters_of(task, slots).items()}, blocks)


class LiveModel:
    """A task's model in evaluation mode, with `weights` and `gradient` float32[D] in the order of a layout.

    Batch norm uses its running statistics and dropout is off, so that a loss depends neither on how a batch
    is cut nor on ranks, and what is learned is what is written. batch_statistics: batch norm alone is in
    training mode, so a loss does not depend on the scale of the weights before it (as TWA is published); then
    a batch is never cut, and rank 0 computes all of it: the others hold their directions. head_moves: weights
    that make the model's head lie in the span and differ, so they get a gradient through it; at_once: inputs
    of one pass through them, at most. Memory: 8 D bytes and the activations of one piece of a batch, or of
    one pass for the head.
    """

    def __init__(
        self,
        task: Task,
        layout: Layout,
        slots: Mapping[str, Slot],
        world: World,
        *,
        batch_statistics: bool = False,
        head_moves: bool = False,
        at_once: int = MOST_TOGETHER,
    ) -> None:
        self.task = task
        self.layout = layout
        self.world = world
        self.batch_statistics = batch_statistics
        self.head_moves = head_moves
        self.at_once = at_once
        parameters = parameters_of(task, slots)
        self.weights = torch.empty(layout.num_parameters, device=task.device)
        self.gradient = torch.zeros(layout.num_parameters, device=task.device)
        for parameter in task.model.parameters():
            parameter.requires_grad_(False)
        for span in layout.spans:
            parameter = parameters[span.name]
            self.weights[span.slice] = parameter.detach().flatten()
            parameter.data = self.weights[span.slice].view(span.shape)
            parameter.requires_grad_(True)
            parameter.grad = self.gradient[span.slice].view(span.shape)
        task.model.eval()
        for module in task.model.modules():
            module.training = batch_statistics and isinstance(module, _BatchNorm)

    def cut(self, indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
        """Batches whose sizes differ by at most one; with batch statistics of two examples or more."""
        num = -(-len(indices) // batch_size)
        return np.array_split(indices, max(1, min(num, len(indices) // 2) if self.batch_statistics else num))

    def pieces(self, batch: np.ndarray, piece: int) -> list[np.ndarray]:
        """What of a batch this rank passes through the model, cut into passes."""
        if self.batch_statistics:
            return [batch] if self.world.is_main else []
        share = self.world.share(len(batch))
        own = batch[share.start : share.stop]
        return even_batches(own, piece) if len(own) else []

    def moved(self) -> None:
        """To be called after `weights` changed: what the model made of them is made anew."""
        if self.task.head is not None:
            self.task.head.forget()

    def backward(
        self, batches: Iterable[Batch], *, num_examples: int, temperature: Tensor | None = None
    ) -> float:
        """Fill `gradient` with that of the mean loss over all ranks' batches; returns the mean.

        temperature: β on the outputs, a scalar that gets its gradient too. num_examples: of all ranks
        together. Each batch is one forward and one backward pass. Raises DivergedError when the loss is not
        finite.
        """
        self.gradient.zero_()
        head = self.task.head if self.head_moves else None
        sums = torch.zeros((), dtype=torch.float64, device=self.weights.device)  # read once: reading waits
        with head.opened(self.at_once, self.world) if head else nullcontext():
            for batch in batches:
                loss = self.task.loss(batch, temperature) / num_examples
                loss.backward()  # type: ignore[no-untyped-call]
                sums += loss.detach()
            total = sums.cpu()
            self.world.all_reduce(total)
        self.world.all_reduce(self.gradient)
        if temperature is not None:
            temperature.grad = torch.zeros_like(temperature) if temperature.grad is None else temperature.grad
            self.world.all_reduce(temperature.grad)
        if not torch.isfinite(total):
            raise DivergedError(
                f"the loss became {float(total)} while coefficients were learned", hint=LOWER_RATE
            )
        return float(total)


def even_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut into batches whose sizes differ by at most one."""
    return np.array_split(indices, max(1, -(-len(indices) // batch_size)))
