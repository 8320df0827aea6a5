"""REPAIR: give the channels of an averaged network the statistics that its endpoints have.

The mean of n units with correlation ρ has variance σ² (1 + (n − 1) ρ) / n, so an average of models whose
units are not perfectly correlated loses variance layer by layer. Shape suffixes: C channels, K endpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from soupkit.align.moments import Batches, Moments, Running, measure, measure_together
from soupkit.align.sites import Site, Sites, find_sites, hooked
from soupkit.checkpoint.dtypes import Array
from soupkit.task.batch_norm import refresh
from soupkit.task.task import Task

Kind = Literal["bn", "forward", "scale", "closed"]
EPSILON = 1e-5
"""Added to variances, in units of the layer's mean variance, so that a dead channel is not blown up."""
NewBatches = Callable[[], Batches]


@dataclass(frozen=True)
class Repaired:
    """What was changed, and each layer's mean over channels of (variance / target variance), before and
    after."""

    changed: tuple[str, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    without_shift: tuple[str, ...]
    skipped: Mapping[str, str]


def target_moments(
    endpoints: Sequence[Mapping[str, Moments]], coefficients: Sequence[float]
) -> dict[str, Moments]:
    """Per channel the mean Σ_k a_k μ_k and the standard deviation Σ_k a_k σ_k (Jordan et al. 2022,
    arXiv:2211.08403, eq. 3, for any number of endpoints)."""
    found = {}
    for name in endpoints[0]:
        means = [a * each[name].mean for a, each in zip(coefficients, endpoints, strict=True)]
        deviations = [a * each[name].std for a, each in zip(coefficients, endpoints, strict=True)]
        found[name] = Moments(torch.stack(means).sum(0), torch.stack(deviations).sum(0).square())
    return found


@dataclass(frozen=True)
class Endpoints:
    """What is known of the models that are averaged: their moments at every site, or those of all together
    (closed)."""

    sites: Sites
    moments: Sequence[Mapping[str, Moments]]
    together: Mapping[str, tuple[Tensor, Tensor]]


def measure_endpoints(
    task: Task, weights: Sequence[Mapping[str, Array]], *, kind: Kind, batches: NewBatches
) -> Endpoints:
    """Run the data through every endpoint, with weights[k]; the task's own model is left alone.

    Cost: one forward pass over the batches per endpoint, two for closed; memory: one more model, K more for
    closed.
    """
    first = next(iter(batches()))
    sites = find_sites(task.model, lambda: task.outputs(first))
    moments, together = [], {}
    endpoint = task.twin()
    here = _in(endpoint.model, sites)
    for tensors in weights:
        endpoint.load(tensors)
        moments.append(measure(endpoint.outputs, here, batches()))
    if kind == "closed":
        twins = [task.twin() for _ in weights]
        for tensors, each in zip(weights, twins, strict=True):
            each.load(tensors)
        columns = zip(*(_in(each.model, sites) for each in twins), strict=True)
        names = {site.name: same for site, same in zip(sites.sites, columns, strict=True)}
        together = measure_together([each.outputs for each in twins], names, batches())
    return Endpoints(sites, moments, together)


def _in(model: nn.Module, sites: Sites) -> list[Site]:
    return [Site(site.name, model.get_submodule(site.name)) for site in sites.sites]


def repair(
    task: Task, endpoints: Endpoints, coefficients: Sequence[float], *, kind: Kind, batches: NewBatches
) -> Repaired:
    """Correct the task's model, which holds the average Σ_k a_k θ_k, in place. Its architecture stays as it
    is.

    bn: re-estimate batch-norm statistics. forward: REPAIR (Jordan et al. 2022, arXiv:2211.08403): every
    site's output becomes τ (x − μ̂) / σ̂ + ν, with the endpoints' ν and τ, folded into its weight and bias;
    batch norms are re-estimated. scale: τ / σ̂ alone, the mean stays. closed: σ̂ predicted from the endpoints
    instead of measured, σ̂² = Σ_k Σ_l a_k a_l cov_kl. The coefficients sum to one. Cost: four forward passes
    over the batches.
    """
    model, sites = task.model, _in(task.model, endpoints.sites)
    target = target_moments(endpoints.moments, coefficients)
    before = ratios(measure(task.outputs, sites, batches()), target)
    if kind == "bn":
        changed = refresh(model, batches(), task.outputs)
    elif kind == "closed":
        changed = _closed_form(sites, endpoints, coefficients)
    else:
        changed = _forward(task, sites, target, shift=kind == "forward", batches=batches)
    after = ratios(measure(task.outputs, sites, batches()), target)
    unshifted = [s.name for s in sites if kind != "bn" and not s.is_norm and s.bias is None]
    return Repaired(tuple(changed), before, after, tuple(unshifted), endpoints.sites.skipped)


def ratios(measured: Mapping[str, Moments], target: Mapping[str, Moments]) -> dict[str, float]:
    """Each site's mean over channels of its variance over the target's; channels that should be dead are left
    out."""
    found = {}
    for name, moments in measured.items():
        alive = target[name].variance > EPSILON * target[name].variance.mean()
        if alive.any():
            found[name] = float((moments.variance[alive] / target[name].variance[alive]).mean())
    return found


def _forward(
    task: Task, sites: Sequence[Site], target: Mapping[str, Moments], *, shift: bool, batches: NewBatches
) -> list[str]:
    """REPAIR by measured statistics; returns the names of the tensors that it changed."""
    norms, layers = [site for site in sites if site.is_norm], [site for site in sites if not site.is_norm]
    for site in norms:
        _set_norm(site, target[site.name], shift=shift)
    changed = [name for site in norms for name in (f"{site.name}.weight", f"{site.name}.bias")]
    measured = measure_corrected(task, layers, target, batches(), shift=shift)
    for site in layers:
        here = measured[site.name]
        changed += fold(
            site, here, target[site.name] if shift else Moments(here.mean, target[site.name].variance)
        )
    return changed + refresh(task.model, batches(), task.outputs)


@torch.no_grad()
def measure_corrected(
    task: Task, sites: Sequence[Site], target: Mapping[str, Moments], batches: Batches, *, shift: bool = True
) -> dict[str, Moments]:
    """The moments at every one of these layers (no batch norms) while all layers before it have been
    corrected already.

    One pass: each output is given its target statistics, by those of the batch, before it goes on; batch
    norms normalise by the batch.
    """
    running = {site.name: Running() for site in sites}
    by_name = {site.name: site for site in sites}

    def visit(name: str, module: nn.Module, _inputs: Tensor, output: Tensor) -> Tensor:
        site = by_name[name]
        running[name].add(site.channels(output))
        one = Running()
        one.add(site.channels(output))
        here = one.moments()
        goal = target[name] if shift and site.bias is not None else Moments(here.mean, target[name].variance)
        gain, offset = _affine(here, goal)
        if site.bias is None:
            offset = torch.zeros_like(offset)
        axis = -1 if isinstance(module, nn.Linear) else 1
        shape = [-1 if number == axis % output.ndim else 1 for number in range(output.ndim)]
        return output * gain.reshape(shape).to(output) + offset.reshape(shape).to(output)

    modules = task.model.modules()
    norms = [
        module for module in modules if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 0.0  # only the batch counts here; they are re-estimated afterwards
    try:
        with hooked({name: site.module for name, site in by_name.items()}, visit):
            for batch in batches:
                if len(batch) > 1:
                    task.outputs(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    return {name: sums.moments() for name, sums in running.items()}


def _affine(measured: Moments, goal: Moments) -> tuple[Tensor, Tensor]:
    """Gain and offset float64[C] that take a channel from measured to goal: g = τ / √(σ̂² + ε), ν − g μ̂."""
    epsilon = EPSILON * float(measured.variance.mean())
    gain = goal.std / (measured.variance + max(epsilon, 1e-30)).sqrt()
    return gain, goal.mean - gain * measured.mean


@torch.no_grad()
def fold(site: Site, measured: Moments, goal: Moments) -> list[str]:
    """W ← g ⊙ W, b ← ν + g (b − μ̂), in place (groups, strides and dilation do not matter); returns the
    names.

    Without a bias the mean is scaled with the rest, since nothing could hold a shift.
    """
    gain, offset = _affine(measured, goal)
    weight = site.weight
    weight.mul_(gain.to(weight).reshape(-1, *[1] * (weight.ndim - 1)))
    if site.bias is None:
        return [f"{site.name}.weight"]
    site.bias.copy_((gain * site.bias.double() + offset).to(site.bias))
    return [f"{site.name}.weight", f"{site.name}.bias"]


@torch.no_grad()
def _set_norm(site: Site, target: Moments, *, shift: bool) -> None:
    """A batch norm's weight and bias are the statistics of its output, once its running statistics are
    right."""
    bias = site.bias
    assert bias is not None
    site.weight.copy_(torch.where(site.weight < 0, -1.0, 1.0) * target.std.to(site.weight))
    if shift:
        bias.copy_(target.mean.to(bias))


@torch.no_grad()
def _closed_form(sites: Sequence[Site], endpoints: Endpoints, coefficients: Sequence[float]) -> list[str]:
    """Predict what the average's statistics are, had every layer inputs like the endpoints', and correct
    these."""
    a_k = torch.tensor(coefficients, dtype=torch.float64)
    changed = []
    for site in sites:
        mean_kc, covariance_klc = endpoints.together[site.name]
        mean = torch.einsum("k,kc->c", a_k, mean_kc)
        predicted = Moments(mean, torch.einsum("k,l,klc->c", a_k, a_k, covariance_klc).clamp_min(0))
        if isinstance(site.module, _BatchNorm):
            assert site.module.running_mean is not None
            assert site.module.running_var is not None
            site.module.running_mean.copy_(mean)
            site.module.running_var.copy_(predicted.variance)
            changed += [f"{site.name}.running_mean", f"{site.name}.running_var"]
        else:
            stds_kc = torch.diagonal(covariance_klc, dim1=0, dim2=1).T.clamp_min(0).sqrt()
            changed += fold(site, predicted, Moments(mean, torch.einsum("k,kc->c", a_k, stds_kc) ** 2))
    return changed
