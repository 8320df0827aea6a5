"""`LiveModel`: a model whose weights and gradients are two flat vectors, so that soups are written into it in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from soupkit.checkpoint.header import Slot
from soupkit.errors import DivergedError
from soupkit.soup.blocks import Layout, lay_out
from soupkit.task.task import Task
from soupkit.task.zero_shot import MOST_PROMPTS, OpenHead, ZeroShotClassifier
from soupkit.world import World

LOWER_RATE = "lower the learning rate (--lr), leave it to its default (with --step block), or clip (--clip-grad 1)"


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
    on ranks, and what is learned is what is written. batch_statistics: batch norm alone is in training mode, so a loss
    does not depend on the scale of the weights before it (as TWA is published); then a batch is never cut, and rank 0
    computes all of it: the others hold their directions. text_moves: the text tower of a CLIP model lies in the span
    and differs, so the head gets a gradient; prompts: of one pass through it, at most.
    Memory: 8 D bytes and the activations of one piece of a batch, or of one pass of prompts.
    """

    def __init__(
        self,
        task: Task,
        layout: Layout,
        slots: Mapping[str, Slot],
        world: World,
        *,
        batch_statistics: bool = False,
        text_moves: bool = False,
        prompts: int = MOST_PROMPTS,
    ) -> None:
        self.task = task
        self.layout = layout
        self.world = world
        self.batch_statistics = batch_statistics
        self.prompts = prompts
        self._classifier = task.model if text_moves and isinstance(task.model, ZeroShotClassifier) else None
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
        """To be called after `weights` changed: a CLIP model's head is made anew by its text tower."""
        if self._classifier is not None:
            self._classifier.head = self._classifier.head.new_zeros(0)  # made when it is needed, with or without graph
        elif isinstance(self.task.model, ZeroShotClassifier):
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
        forward and one backward pass. Raises DivergedError when the loss is not finite.
        """
        self.gradient.zero_()
        head = self._classifier.open_head(self.prompts) if self._classifier else None
        total = torch.zeros((), dtype=torch.float64)
        for images, targets in batches:
            logits = self.task.model(images.to(self.task.device)).float()
            scaled = logits if temperature is None else logits * temperature.to(logits)
            loss = nn.functional.cross_entropy(scaled, targets.to(logits.device), reduction="sum") / num_examples
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double().cpu()
        self.world.all_reduce(total)
        if head is not None:
            self._through_the_head(head)
        self.world.all_reduce(self.gradient)
        if temperature is not None:
            temperature.grad = torch.zeros_like(temperature) if temperature.grad is None else temperature.grad
            self.world.all_reduce(temperature.grad)
        if not torch.isfinite(total):
            raise DivergedError(f"the loss became {float(total)} while coefficients were learned", hint=LOWER_RATE)
        return float(total)

    def _through_the_head(self, head: OpenHead) -> None:
        """Add what the text tower has to do with the loss: every rank takes its share of the prompts."""
        gradient = torch.zeros_like(head.head) if head.head.grad is None else head.head.grad
        self.world.all_reduce(gradient)
        head.backward(gradient, self.world)


def activation_bytes(task: Task) -> int:
    """What one example of a forward pass keeps for the backward pass: measured, on one example more than one.

    Parameters that are saved are not counted. Cost: two small forward passes.
    """
    return _saved_by_one_more(task, task.model, torch.zeros(1, *task.settings.input_size, device=task.device))


def prompt_bytes(task: Task) -> int:
    """What one prompt of a CLIP model's text tower keeps for the backward pass, measured in the same way."""
    assert isinstance(task.model, ZeroShotClassifier)
    return _saved_by_one_more(task, task.model.encode, task.model.tokens[:1])


def _saved_by_one_more(task: Task, forward: Callable[[Tensor], Tensor], one: Tensor) -> int:
    return max(_saved_bytes(task, forward, torch.cat([one, one])) - _saved_bytes(task, forward, one), 0)


def _saved_bytes(task: Task, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in task.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Any:
        """Hold on to the storage, not the tensor: a graph that holds its own output is never freed."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, _never):
        forward(inputs).sum()
    return sum(storage.nbytes() for storage in kept.values())


def _never(_packed: Any) -> Tensor:
    raise AssertionError("nothing is differentiated here")


def even_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut into batches whose sizes differ by at most one."""
    return np.array_split(indices, max(1, -(-len(indices) // batch_size)))
