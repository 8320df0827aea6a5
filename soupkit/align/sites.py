"""Where the statistics of a network's channels can be corrected without changing its architecture.

A site is a module whose weight (and bias) scale and shift the channels of its output: a convolution, a linear
layer, or a batch norm. Where batch norm follows a convolution, it is the batch norm that is corrected.
Shape suffix: C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Site:
    """A module whose channels can be scaled, and shifted where it has a bias."""

    name: str
    module: nn.Module

    @property
    def is_norm(self) -> bool:
        """Whether it is a batch norm, which is seen through its input: some have an activation built in."""
        return isinstance(self.module, _BatchNorm)

    @property
    def weight(self) -> Tensor:
        """The tensor whose first axis are the channels."""
        assert isinstance(self.module.weight, Tensor)
        return self.module.weight

    @property
    def bias(self) -> Tensor | None:
        """The shift of every channel; None where the module has none."""
        found = self.module.bias
        assert found is None or isinstance(found, Tensor)
        return found

    def channels(self, values: Tensor) -> Tensor:
        """An input or output as [rows, C]."""
        axis = -1 if isinstance(self.module, nn.Linear) else 1
        return values.movedim(axis, -1).reshape(-1, len(self.weight))


@dataclass(frozen=True)
class Sites:
    """The sites of a network in the order in which they are reached, and the layers that could not be one,
    with why."""

    sites: tuple[Site, ...]
    skipped: Mapping[str, str]

    @property
    def norms(self) -> tuple[Site, ...]:
        """The batch norms among them."""
        return tuple(site for site in self.sites if site.is_norm)


@torch.no_grad()
def find_sites(model: nn.Module, run: Callable[[], object]) -> Sites:
    """Run some examples through the model and find its sites. The layer that makes the model's output is
    none.

    run: passes the examples through the model and returns its output.

    A layer is skipped that is called twice, shares its weight, computes its weight from others, or turns out
    not to be linear in it (weight standardisation): scaling it would not scale its output. Cost: two forward
    passes.
    """
    seen = _run(model, run)
    found: list[Site] = []
    skipped: dict[str, str] = {}
    shared = _shared(model)
    for name, layer in seen.layers.items():
        if name in seen.before_norm:
            continue
        reason = "it makes the output" if layer.is_output else _reason(layer, name in shared)
        if reason:
            skipped[name] = reason
        else:
            found.append(Site(name, layer.module))
    return Sites(tuple(found), skipped)


@dataclass
class _Layer:
    module: nn.Module
    num_calls: int = 0
    is_output: bool = False
    is_linear: bool = True


@dataclass
class _Seen:
    """What one pass shows: the layers in order, and those whose output goes straight into a batch norm."""

    layers: dict[str, _Layer]
    before_norm: set[str]


def _run(model: nn.Module, run: Callable[[], object]) -> _Seen:
    seen = _Seen({}, set())
    makers: dict[int, str] = {}
    kept: list[Tensor] = []  # an id is that of one tensor only as long as the tensor lives

    def visit(name: str, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        layer = seen.layers.setdefault(name, _Layer(module))
        layer.num_calls += 1
        layer.is_linear = layer.is_linear and (
            isinstance(module, _BatchNorm) or _scales(module, inputs, output)
        )
        if isinstance(module, _BatchNorm) and id(inputs) in makers:
            seen.before_norm.add(makers[id(inputs)])
        makers[id(output)] = name
        kept.append(output)

    with hooked({name: module for name, module in model.named_modules() if _is_candidate(module)}, visit):
        result = run()
    for output in _tensors(result):
        if id(output) in makers:
            seen.layers[makers[id(output)]].is_output = True
    return seen


Visit = Callable[[str, nn.Module, Tensor, Tensor], Tensor | None]


@contextmanager
def hooked(modules: Mapping[str, nn.Module], visit: Visit) -> Iterator[None]:
    """Call visit(name, module, input, output) after each module; what it returns replaces the output."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        return lambda module, inputs, output: visit(name, module, inputs[0], output)

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_candidate(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return module.running_mean is not None and module.weight is not None
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _reason(layer: _Layer, is_shared: bool) -> str:
    """Why a layer cannot be corrected; empty when it can."""
    if layer.num_calls > 1:
        return "it is called more than once"
    if is_shared:
        return "its weight is shared"
    if "weight" not in layer.module._parameters:
        return "its weight is computed from others"
    return "" if layer.is_linear else "its output does not scale with its weight"


def _scales(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Whether twice the weight and bias give twice the output. Hooks do not run again."""
    scaled = (module._parameters.get(name) for name in ("weight", "bias"))
    own = [parameter for parameter in scaled if parameter is not None]
    for parameter in own:
        parameter.mul_(2)
    doubled = module.forward(inputs)
    for parameter in own:
        parameter.div_(2)
    return bool(torch.allclose(doubled, 2 * output, rtol=1e-3, atol=1e-3 * float(output.abs().max())))


def _shared(model: nn.Module) -> set[str]:
    """The modules whose weight another module holds too."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(weight.data_ptr(), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for each in result:
            yield from _tensors(each)
