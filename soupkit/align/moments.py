"""Mean and variance of every channel at every site, measured on data. Shape suffixes: C channels, K
models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from soupkit.align.sites import Site, hooked
from soupkit.task.task import Batch

Batches = Iterable[Batch]
Forward = Callable[[Batch], object]
"""Passes a batch through a model, as `Task.outputs` does."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance of the channels of one site, float64[C]; of what the weight and bias make, before any
    activation that the module has built in."""

    mean: Tensor
    variance: Tensor

    @property
    def std(self) -> Tensor:
        """The standard deviation."""
        return self.variance.sqrt()


class Running:
    """Sums over batches of which moments are made, in float64: examples weigh the same in batches of any
    size."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.squares: Tensor | None = None

    def add(self, values_rc: Tensor) -> None:
        """Take rows of channels."""
        rows = values_rc.double()
        total, squares = rows.sum(0), rows.square().sum(0)
        self.count += len(rows)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def moments(self) -> Moments:
        """The moments of all rows taken."""
        assert self.total is not None
        assert self.squares is not None
        mean = self.total / self.count
        return Moments(mean, (self.squares / self.count - mean.square()).clamp_min(0))


@torch.no_grad()
def measure(forward: Forward, sites: Sequence[Site], batches: Batches) -> dict[str, Moments]:
    """The moments at every site of the model that forward runs, over all batches. Cost: one forward pass."""
    running = {site.name: Running() for site in sites}
    by_name = {site.name: site for site in sites}

    def visit(name: str, _module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        site = by_name[name]
        running[name].add(site.channels(inputs if site.is_norm else output))

    with hooked({site.name: site.module for site in sites}, visit):
        for batch in batches:
            forward(batch)
    return {site.name: after_norm(site, running[site.name].moments()) for site in sites}


def after_norm(site: Site, moments: Moments) -> Moments:
    """What a batch norm's weight and bias make of an input with these moments; those of other sites as they
    are."""
    norm = site.module
    if not isinstance(norm, _BatchNorm):
        return moments
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shifted = (moments.mean - norm.running_mean.double()) * scale + norm.bias.double()
    return Moments(shifted, moments.variance * scale.square())


@torch.no_grad()
def measure_together(
    forwards: Sequence[Forward], names: Mapping[str, Sequence[Site]], batches: Batches
) -> dict[str, tuple[Tensor, Tensor]]:
    """Means float64[K, C] and covariances float64[K, K, C] of the inputs of norms and outputs of other sites.

    names: for every site's name, that site in each model. The same examples go through every model, so that
    their correlation is known. Memory: what K models hold at all sites for one batch. Cost: K forward passes.
    """
    totals: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for batch in batches:
        held: dict[str, list[Tensor]] = {name: [] for name in names}
        for number, forward in enumerate(forwards):
            _hold(forward, {name: sites[number] for name, sites in names.items()}, batch, held)
        for name, values in held.items():
            stacked_krc = torch.stack(values)
            count[name] = count.get(name, 0) + stacked_krc.shape[1]
            totals[name] = totals.get(name, torch.zeros(())) + stacked_krc.sum(1).cpu()
            cross = torch.einsum("irc,jrc->ijc", stacked_krc, stacked_krc).cpu()
            products[name] = products.get(name, torch.zeros(())) + cross
    means = {name: total / count[name] for name, total in totals.items()}
    return {
        name: (mean, products[name] / count[name] - mean[:, None] * mean[None, :])
        for name, mean in means.items()
    }


def _hold(forward: Forward, sites: Mapping[str, Site], batch: Batch, held: dict[str, list[Tensor]]) -> None:
    def visit(name: str, _module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        site = sites[name]
        held[name].append(site.channels(inputs if site.is_norm else output).double())

    with hooked({name: site.module for name, site in sites.items()}, visit):
        forward(batch)
