"""A tiny network, ingredients of it, and data: small enough for brute force in float64."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from task.fake import Fake, Rows
from torch import Tensor, nn

from soupkit.checkpoint.source import slots_of
from soupkit.soup.blocks import Layout
from soupkit.soup.live import LiveModel, layout_of
from soupkit.soup.subspace import Ingredients
from soupkit.world import ALONE, World

SHAPES = {"0.weight": (7, 5), "0.bias": (7,), "2.weight": (3, 7), "2.bias": (3,)}
NUM_PARAMETERS = 66


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def task() -> Fake:
    """The network, which learns to tell classes apart."""
    return Fake(network(), loss=partial(nn.functional.cross_entropy, reduction="sum"))


def tensors(num: int, *, seed: int = 0, spread: float = 0.1) -> list[dict[str, np.ndarray]]:
    """Ingredients around one base."""
    random = np.random.default_rng(seed)
    base = {name: random.standard_normal(shape) for name, shape in SHAPES.items()}
    return [
        {
            name: (value + spread * random.standard_normal(value.shape)).astype(np.float32)
            for name, value in base.items()
        }
        for _ in range(num)
    ]


def ingredients(num: int, *, blocks: str = "tensor", **options: Any) -> Ingredients:
    made = tensors(num, **options)
    return Ingredients(made, layout_of(task(), slots_of(made[0]), blocks))


def flat(values: dict[str, np.ndarray], layout: Layout) -> np.ndarray:
    """All weights of the span, float64[D]."""
    return np.concatenate([values[span.name].astype(np.float64).reshape(-1) for span in layout.spans])


def stacked(found: Ingredients) -> np.ndarray:
    """float64[K, D]."""
    return np.stack([flat(dict(each), found.layout) for each in found.checkpoints])


def per_parameter(values_B: np.ndarray, layout: Layout) -> np.ndarray:
    """A value per block → per parameter: float64[…, D]."""
    return np.concatenate(
        [np.repeat(values_B[..., span.block, None], span.num_elements, -1) for span in layout.spans], -1
    )


def live(found: Ingredients, world: World = ALONE) -> LiveModel:
    return LiveModel(task(), found.layout, slots_of(found.checkpoints[0]), world)


class Data:
    """Random examples in float32, and how a fit reads them."""

    def __init__(self, num: int, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(num, 5, generator=generator)
        self.targets = torch.randint(0, 3, (num,), generator=generator)

    def __call__(self, pieces: list[np.ndarray], _epoch: int) -> Iterator[Rows]:
        for piece in pieces:
            yield Rows(self.images[piece], self.targets[piece])


def loss_at(
    weights: Tensor, layout: Layout, images: Tensor, targets: Tensor, temperature: Any = 1.0
) -> Tensor:
    """Mean cross-entropy of the network with these weights, float64[D], differentiable."""
    parameters = {span.name: weights[span.slice].view(span.shape) for span in layout.spans}
    logits = torch.func.functional_call(network().double(), parameters, images.double())
    return nn.functional.cross_entropy(logits * temperature, targets)
