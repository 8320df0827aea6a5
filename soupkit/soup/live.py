"""`LiveModel`: a model whose weights and gradients are two flat vectors, so that soups are written into it in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soupkit.checkpoint.header import Slot
from soupkit.errors import TaskError
from soupkit.soup.blocks import Layout, lay_out
from soupkit.task.task import Task
from soupkit.task.zero_shot import ZeroShotClassifier
from soupkit.world import World

LOWER_RATE = "lower the learning rate (--lr), or clip the gradient (--clip-grad 1)"


def parameters_of(task: Task, slots: Mapping[str, Slot]) -> dict[str, nn.Parameter]:
    """The parameters that lie in the span: those of the model under the checkpoint's names, tied ones once.

    Buffers and integers stay outside. Names are in the model's order, since blocks of N parameters follow it.
    """
    model = task.model.clip if isinstance(task.model, ZeroShotClassifier) else task.model
    named = model.named_parameters(remove_duplicate=False)
    found, seen = {}, set()
    for name, parameter in named:
        if name in slots and id(parameter) not in seen and parameter.is_floating_point():
            seen.add(id(parameter))
            found[name] = parameter
    return found


def layout_of(task: Task, slots: Mapping[str, Slot], blocks: str) -> Layout:
    """The span of a task's model, cut into blocks."""
    return lay_out({name: parameter.shape for name, parameter in parameters_of(task, slots).items()}, blocks)


class LiveModel:
    """A task's model in evaluation mode, with `weights` and `gradient` float32[D] in the order of a layout.

    Batch norm uses its running statistics and dropout is off, so that a loss depends neither on how a batch is cut nor
    on ranks, and what is learned is what is written. Memory: 8 D bytes and the activations of one piece of a batch.
    """

    def __init__(self, task: Task, layout: Layout, slots: Mapping[str, Slot], world: World) -> None:
        self.task = task
        self.layout = layout
        self.world = world
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

    def moved(self) -> None:
        """To be called after `weights` changed: a CLIP model's head is made anew by its text tower."""
        if isinstance(self.task.model, ZeroShotClassifier):
            self.task.model.rebuild_head()

    def backward(
        self,
        batches: Iterator[tuple[Tensor, Tensor]],
        *,
        num_examples: int,
        temperature: Tensor | None = None,
    ) -> float:
        """Fill `gradient` with that of the mean cross-entropy of β · logits over all ranks' batches; returns the mean.

        temperature: β, a scalar that gets its gradient too. num_examples: of all ranks together. Each batch is one
        forward and one backward pass. Raises TaskError when the loss is not finite.
        """
        self.gradient.zero_()
        total = torch.zeros((), dtype=torch.float64)
        for images, targets in batches:
            logits = self.task.model(images.to(self.task.device)).float()
            scaled = logits if temperature is None else logits * temperature.to(logits)
            loss = nn.functional.cross_entropy(scaled, targets.to(logits.device), reduction="sum") / num_examples
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double().cpu()
        self.world.all_reduce(total)
        self.world.all_reduce(self.gradient)
        if temperature is not None:
            temperature.grad = torch.zeros_like(temperature) if temperature.grad is None else temperature.grad
            self.world.all_reduce(temperature.grad)
        if not torch.isfinite(total):
            raise TaskError(f"the loss became {float(total)} while coefficients were learned", hint=LOWER_RATE)
        return float(total)


def activation_bytes(task: Task) -> int:
    """What one example of a forward pass keeps for the backward pass: measured, on one example more than one.

    Parameters that are saved are not counted. Cost: two small forward passes.
    """
    one, two = (_saved_bytes(task, num) for num in (1, 2))
    return max(two - one, 0)


def _saved_bytes(task: Task, num: int) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in task.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Any:
        """Hold on to the storage, not the tensor: a graph that holds its own output is never freed."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, _never):
        images = torch.zeros(num, *task.settings.input_size, device=task.device)
        task.model(images).sum()
    return sum(storage.nbytes() for storage in kept.values())


def _never(_packed: Any) -> Tensor:
    raise AssertionError("nothing is differentiated here")


def even_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut into batches whose sizes differ by at most one."""
    return np.array_split(indices, max(1, -(-len(indices) // batch_size)))
