"""What one rank of a population does in the tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train.population_small import no_dropout, population, population_recipe

from soupkit.events import silent
from soupkit.recipe.population import TrainPopulation
from soupkit.task.score import Score
from soupkit.train.population.population import Population, Seams
from soupkit.train.population.state import find_state, load_state, save_state
from soupkit.world import World

Trained = tuple[dict[int, dict[str, np.ndarray]], list[list[float]]]


class NoBatchNorm(torch.nn.Module):
    """A batch in parts gives the same gradients only where examples do not meet, as they do in batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.head = torch.nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(images))).flatten(1))


def no_batch_norm(seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NoBatchNorm()


def judged(tensors: Mapping[str, torch.Tensor], metric: str) -> Score:
    return Score(metric, float(tensors["head.weight"].double().norm()), 0.0, 1)


RECIPES: dict[str, TrainPopulation] = {
    "papa": population_recipe(decay=0.8, num_members=4),
    "late": population_recipe(decay=0.8, num_members=4, async_average=2),
    "pairs": population_recipe(
        method="papa-2", merge_every=1, num_members=4, epochs=3, selection=True, num_children=1,
        mutation_sigma=0.01,
    ),
    "parts": population_recipe(decay=0.8, num_members=2, batch_size=13, mixup=(0.0, 0.3)),
}  # fmt: skip


def make(name: str, world: World) -> Population:
    model = no_batch_norm if name == "parts" else no_dropout
    return population(RECIPES[name], make=model, seams=Seams(judge=judged), world=world)


def result(trained: Population) -> Trained:
    members = {
        m.number: {k: v.numpy().copy() for k, v in m.model.state_dict().items()} for m in trained.members
    }
    return members, trained.history.losses


def train(names: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Train the populations of these names, with as many ranks as there are; and one from a state that one
    rank saved.

    Then save a state, for one rank to go on from.
    """
    world = World("cpu", threads=1)
    found: dict[str, Any] = {}
    with world.group():
        for name in names:
            trained = make(name, world)
            trained.train(silent)
            found[name] = result(trained)
        state = find_state(folder / "one")
        if state is not None:
            again = make("papa", world)
            load_state(again, state)
            again.train(silent)
            found["continued"] = result(again)
        stopped = make("papa", world)
        for member in stopped.members:
            member.begin()
        for _ in range(5):
            stopped._update(lambda members: [member.advance() for member in members])
        save_state(stopped, folder / f"ranks-{world.size}", {})
        found["similarity"] = stopped.history.similarity
    return found
