"""Groups that are derived once: tracing the same architecture again would be most of the time of a test of a
job."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from soupkit.align.graph.trace import permutation_spec
from soupkit.align.spec import PermutationSpec

_FOUND: dict[tuple[object, ...], PermutationSpec] = {}


def traced_once(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, pin: Iterable[str] = ()
) -> PermutationSpec:
    """`permutation_spec`, which looks at no weights: of a model that is made of the same it is the same."""
    state = model.state_dict(keep_vars=True)
    tied = len({id(tensor) for tensor in state.values()})
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items())
    shown = tuple((tuple(each.shape), each.dtype) for each in inputs)
    key = (repr(model), model.training, shapes, tied, shown)
    if key not in _FOUND:
        _FOUND[key] = permutation_spec(model, inputs)
    spec = _FOUND[key]
    return spec.pin(pin) if (pin := tuple(pin)) else spec
