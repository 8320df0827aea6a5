"""REPAIR against statistics measured another way, against torch's own, and in cases that can be worked by
hand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from task.fake import Fake, Rows
from torch import Tensor, nn

from soupkit.align.moments import Moments, measure
from soupkit.align.repair import Kind, Repaired, fold, measure_endpoints, repair, target_moments
from soupkit.align.sites import Site, find_sites
from soupkit.task.weights import arrays

Net = Callable[[], nn.Module]


def data(num: int = 3, size: int = 16) -> list[Rows]:
    generator = torch.Generator().manual_seed(0)
    return [
        Rows(2 * torch.randn(size, 3, 8, 8, generator=generator) + 1, torch.zeros(size)) for _ in range(num)
    ]


def plain() -> nn.Module:
    """No norm; a grouped, dilated convolution, a depthwise one, one without bias."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.GELU(),
        nn.Conv2d(12, 6, 1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(7),
        nn.ReLU(),
        nn.Linear(7, 4),
    )


def normed() -> nn.Module:
    """Convolutions without bias, each followed by batch norm, and one that is not."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def trained_like(make: Net, seed: int) -> nn.Module:
    """Random weights, gains and shifts, and batch-norm statistics that fit the data."""
    torch.manual_seed(seed)
    model = make().eval()
    model(data()[0].inputs)  # lazy layers take their shape
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    torch.optim.swa_utils.update_bn([batch.inputs for batch in data()], model)
    return model.eval()


def mean_of(models: list[nn.Module], coefficients: list[float]) -> nn.Module:
    result = deepcopy(models[0])
    states = [model.state_dict() for model in models]
    for name, tensor in result.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(sum(a * state[name] for a, state in zip(coefficients, states, strict=True)))
    return result


def repaired(models: list[nn.Module], soup: nn.Module, coefficients: list[float], kind: Kind) -> Repaired:
    task = Fake(soup)
    endpoints = measure_endpoints(task, [arrays(each) for each in models], kind=kind, batches=data)
    return repair(task, endpoints, coefficients, kind=kind, batches=data)


def outputs(model: nn.Sequential, number: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the channels after the first layers of a sequence, over all images at once."""
    images = torch.cat([batch.inputs for batch in data()])
    with torch.no_grad():
        values = model.double()[: number + 1](images.double())
    model.float()
    dims = (0, 2, 3) if values.ndim == 4 else (0,)
    return values.mean(dims), values.std(dims, correction=0)


@pytest.mark.parametrize("coefficients", [[0.5, 0.5], [0.2, 0.3, 0.5]], ids=["two", "three"])
def test_channels_get_the_statistics_of_the_endpoints(coefficients: list[float]) -> None:
    """Every layer's mean and deviation, measured in float64 by running parts of the network."""
    models = [trained_like(plain, seed) for seed in range(len(coefficients))]
    soup = mean_of(models, coefficients)
    shapes = {name: tensor.shape for name, tensor in soup.state_dict().items()}
    before = [outputs(soup, number) for number in (0, 2, 4, 6, 9)]
    result = repaired(models, soup, coefficients, "forward")
    for number, (_, old) in zip((0, 2, 4, 6, 9), before, strict=True):
        endpoints = [outputs(model, number) for model in models]
        mean = sum(a * each[0] for a, each in zip(coefficients, endpoints, strict=True))
        std = sum(a * each[1] for a, each in zip(coefficients, endpoints, strict=True))
        found_mean, found_std = outputs(soup, number)
        assert torch.allclose(
            found_std, std, rtol=0.06
        )  # it was corrected by batches of 16, this is of all images
        assert not torch.allclose(old, std, rtol=0.03)
        if number != 6:
            assert torch.allclose(found_mean, mean, atol=0.03 * float(std.max()))
    assert {name: tensor.shape for name, tensor in soup.state_dict().items()} == shapes
    assert result.without_shift == ("6",)
    assert result.skipped == {"11": "it makes the output"}
    assert all(abs(ratio - 1) < 0.06 for ratio in result.after.values())


def test_batch_norms_get_them_too() -> None:
    models = [trained_like(normed, seed) for seed in range(2)]
    with torch.no_grad():
        models[1][1].weight.neg_()  # the deviation of a channel does not know the sign of its gain
    soup = mean_of(models, [0.5, 0.5])
    result = repaired(models, soup, [0.5, 0.5], "forward")
    for number in (1, 4, 6):
        endpoints = [outputs(model, number) for model in models]
        found_mean, found_std = outputs(soup, number)
        assert torch.allclose(found_std, (endpoints[0][1] + endpoints[1][1]) / 2, rtol=0.03)
        assert torch.allclose(found_mean, (endpoints[0][0] + endpoints[1][0]) / 2, atol=0.05)
    assert {name.rpartition(".")[0] for name in result.changed} == {"1", "4", "6"}


def test_scale_keeps_the_mean() -> None:
    models = [trained_like(plain, seed) for seed in range(2)]
    soup = mean_of(models, [0.5, 0.5])
    before = outputs(soup, 0)
    repaired(models, soup, [0.5, 0.5], "scale")
    mean, std = outputs(soup, 0)
    assert torch.allclose(mean, before[0], atol=1e-5)
    assert torch.allclose(std, (outputs(models[0], 0)[1] + outputs(models[1], 0)[1]) / 2, rtol=1e-3)


def test_closed_form_is_exact_where_the_inputs_are_the_same() -> None:
    """Of the first layer, what is predicted from the endpoints is what the average does."""
    models = [trained_like(plain, seed) for seed in range(3)]
    coefficients = [0.2, 0.3, 0.5]
    measured, closed = (mean_of(models, coefficients) for _ in range(2))
    repaired(models, measured, coefficients, "forward")
    repaired(models, closed, coefficients, "closed")
    assert torch.allclose(measured[0].weight, closed[0].weight, rtol=1e-4, atol=1e-6)
    assert torch.allclose(measured[0].bias, closed[0].bias, rtol=1e-3, atol=1e-4)


def test_closed_form_of_batch_norm_is_that_of_the_average_input() -> None:
    models = [trained_like(normed, seed) for seed in range(2)]
    soup = mean_of(models, [0.5, 0.5])
    repaired(models, soup, [0.5, 0.5], "closed")
    mean, std = outputs(soup, 0)
    assert torch.allclose(soup[1].running_mean.double(), mean, atol=1e-5)
    assert torch.allclose(soup[1].running_var.double().sqrt(), std, rtol=1e-4)


def test_bn_is_torchs_own() -> None:
    models = [trained_like(normed, seed) for seed in range(2)]
    soup, expected = (mean_of(models, [0.5, 0.5]) for _ in range(2))
    result = repaired(models, soup, [0.5, 0.5], "bn")
    torch.optim.swa_utils.update_bn([batch.inputs for batch in data()], expected)
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(tensor.double(), soup.state_dict()[name].double(), rtol=1e-5, atol=1e-6), name
    assert all("running" in name or "num_batches" in name for name in result.changed)


def test_the_mean_of_correlated_units() -> None:
    """σ² (1 + (n − 1) ρ) / n, the loss of variance that is repaired, is what the closed form predicts."""
    n, rho, size = 4, 0.3, 200_000
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(size, 1, generator=generator), torch.randn(size, n, generator=generator)
    units = rho**0.5 * common + (1 - rho) ** 0.5 * own
    covariance = torch.cov(units.T)
    predicted = float(torch.full((n,), 1 / n) @ covariance @ torch.full((n,), 1 / n))
    assert predicted == pytest.approx((1 + (n - 1) * rho) / n, rel=0.02)
    target = target_moments([{"x": Moments(torch.zeros(1), torch.ones(1))}] * n, [1 / n] * n)
    assert float(target["x"].variance) == pytest.approx(1.0)


def test_target_of_unequal_endpoints() -> None:
    a = {"x": Moments(torch.tensor([1.0]), torch.tensor([4.0]))}
    b = {"x": Moments(torch.tensor([5.0]), torch.tensor([36.0]))}
    target = target_moments([a, b], [0.75, 0.25])["x"]
    assert float(target.mean) == 2.0
    assert float(target.std) == pytest.approx(3.0)  # of deviations 2 and 6, not of variances


def test_a_dead_channel_is_not_blown_up() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    measured = Moments(torch.zeros(2), torch.tensor([1.0, 0.0]))
    fold(Site("x", layer), measured, Moments(torch.zeros(2), torch.ones(2)))
    assert float(layer.weight.detach().abs().max()) < 1.01
    assert bool(torch.isfinite(layer.bias).all())


class Shared(nn.Module):
    """Layers that must be left alone: used twice, tied, standardised, reparametrised."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.tied_a, self.tied_b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied_b.weight = self.tied_a.weight
        self.standardised = Standardised(4, 4)
        self.parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.free, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x = torch.tanh(self.tied_b(torch.tanh(self.tied_a(x))))
        x = torch.tanh(self.parametrised(torch.tanh(self.standardised(x))))
        return self.head(torch.tanh(self.free(x)))


class Standardised(nn.Linear):
    """Its output does not grow with its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


def test_layers_that_cannot_be_scaled_are_left_alone() -> None:
    model = Shared().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sites = find_sites(model, lambda: model(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))))
    assert [site.name for site in sites.sites] == ["free"]
    assert sites.skipped == {
        "twice": "it is called more than once",
        "tied_a": "its weight is shared",
        "tied_b": "its weight is shared",
        "standardised": "its output does not scale with its weight",
        "parametrised": "its weight is computed from others",
        "head": "it makes the output",
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_batch_norm_with_its_activation_built_in_is_seen_before_it() -> None:
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.Flatten(), nn.LazyLinear(2)).eval()
    model(data()[0].inputs)
    torch.optim.swa_utils.update_bn([batch.inputs for batch in data()], model)
    model.eval()
    sites = find_sites(model, lambda: model(data()[0].inputs))
    assert [site.name for site in sites.sites] == ["1"]
    found = measure(Fake(model).outputs, sites.sites, data())["1"]
    assert torch.allclose(found.mean, model[1].bias.double(), atol=1e-4)
    assert torch.allclose(found.std, model[1].weight.double(), rtol=1e-2)


def test_batches_of_other_sizes_weigh_their_examples_equally() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    sites = find_sites(model, lambda: model(data()[0].inputs)).sites
    images = torch.cat([batch.inputs for batch in data()])
    forward = Fake(model).outputs
    whole = measure(forward, sites, [Rows(images, images)])["0"]
    parts = measure(forward, sites, [Rows(part, part) for part in (images[:1], images[1:40], images[40:])])[
        "0"
    ]
    assert torch.allclose(whole.mean, parts.mean)
    assert torch.allclose(whole.variance, parts.variance)
