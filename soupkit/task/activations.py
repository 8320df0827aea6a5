"""What a forward pass leaves behind, and the mode it runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def kept_by_one_more(model: nn.Module, forward: Callable[[Tensor], Tensor], one: Tensor) -> int:
    """Bytes that one input more than one keeps for the backward pass.

    Parameters that are saved are not counted. Cost: two small forward passes.
    """
    return max(_kept(model, forward, torch.cat([one, one])) - _kept(model, forward, one), 0)


def _kept(model: nn.Module, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> object:
        """Hold on to the storage, not the tensor: a graph that holds its own output is never freed."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return None

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, _never):
        forward(inputs).sum()
    return sum(storage.nbytes() for storage in kept.values())


def _never(_packed: object) -> Tensor:
    raise AssertionError("nothing is differentiated here")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
