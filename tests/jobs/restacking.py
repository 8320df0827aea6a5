"""What a stack of layers must compute: the tensors that a model of the stacked layers has, put together by
hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def restacked(
    weights: Mapping[str, torch.Tensor], prefix: str, order: Sequence[int]
) -> dict[str, torch.Tensor]:
    """The tensors with the layers under `prefix` in this order, numbered anew."""
    found = {name: value for name, value in weights.items() if not name.startswith(f"{prefix}.")}
    for number, layer in enumerate(order):
        own = f"{prefix}.{layer}."
        found |= {
            f"{prefix}.{number}.{name[len(own) :]}": value
            for name, value in weights.items()
            if name.startswith(own)
        }
    return found
