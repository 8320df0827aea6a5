"""Batch-norm statistics of a soup, estimated again: they lie outside the span of the ingredients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from soupkit.errors import TaskError
from soupkit.task.task import Batch


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Whether a model keeps statistics that `refresh` would re-estimate."""
    return any(
        isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules()
    )


@torch.no_grad()
def refresh(
    model: torch.nn.Module, batches: Iterable[Batch], forward: Callable[[Batch], object]
) -> list[str]:
    """Replace the running statistics by their mean over `batches`, weighted by the sizes of the batches.

    forward passes a batch through the model, as `Task.outputs` does.

    Needed after averaging weights (Izmailov et al. 2018, arXiv:1803.05407). As
    torch.optim.swa_utils.update_bn, and equal to it for equal batches, but a short last batch counts for what
    it holds, and only batch-norm modules are in training mode: dropout and stochastic depth stay off. Batches
    of one example are left out, since their variance is not defined. A layer that no batch reaches (of a text
    tower, of an auxiliary head) keeps its statistics. Modes and momenta are restored. Without batch norm
    nothing is read. Returns the model's names of the buffers that changed. Raises TaskError when no batch had
    two examples. Cost: one forward pass per batch.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not layers:
        return []
    with _only_training(model, list(layers.values())) as reached:
        num_seen = 0
        for batch in batches:
            if len(batch) < 2:
                continue
            num_seen += len(batch)
            for layer in layers.values():
                layer.momentum = len(batch) / num_seen
            forward(batch)
    if not num_seen:
        raise TaskError("batch norm cannot be refreshed: no batch had two examples or more")
    return [
        f"{name}.{buffer}".lstrip(".")
        for name, layer in layers.items()
        if layer in reached
        for buffer, _ in layer.named_buffers()
    ]


@contextmanager
def _only_training(model: torch.nn.Module, layers: list[_BatchNorm]) -> Iterator[set[torch.nn.Module]]:
    """Statistics start anew, from the layer's first batch on; inside, the set of layers that had one so
    far."""
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    reached: set[torch.nn.Module] = set()

    def reach(layer: torch.nn.Module, _inputs: object) -> None:
        if layer not in reached:
            assert isinstance(layer, _BatchNorm)
            layer.reset_running_stats()
            reached.add(layer)

    hooks = [layer.register_forward_pre_hook(reach) for layer in layers]
    model.eval()
    for layer in layers:
        layer.training = True
    try:
        yield reached
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
