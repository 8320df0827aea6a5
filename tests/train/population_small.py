"""A population of small models on scikit-learn's digits, without the job around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from train.small import small_model, task_of

from soupkit.recipe.population import TrainPopulation
from soupkit.task.images.data import Splits, open_data
from soupkit.task.task import Task
from soupkit.train.population.flat import Flat
from soupkit.train.population.grid import Grid
from soupkit.train.population.members import Member
from soupkit.train.population.population import Population, Seams
from soupkit.train.population.regularise import member_recipes
from soupkit.world import World

CPU = torch.device("cpu")
ALONE = World("cpu", threads=1, rank=0, size=1)
NO_SEAMS = Seams()


def population_recipe(**values: Any) -> TrainPopulation:
    defaults: dict[str, Any] = {
        "out": Path("out"),
        "model": "timm:test_resnet,img_size=32",
        "data": "digits",
        "num_train": 64,
    }
    defaults |= {
        "num_held_out": 100,
        "num_test": 100,
        "batch_size": 16,
        "epochs": 2,
        "lr": 0.05,
        "num_members": 3,
    }
    return TrainPopulation(**(defaults | {"average_every": 3} | values))


def no_dropout(seed: int) -> torch.nn.Module:
    model = small_model(seed)
    model.drop.p = 0.0
    return model


def population(
    recipe: TrainPopulation,
    *,
    make: Callable[[int], torch.nn.Module] = small_model,
    seams: Seams = NO_SEAMS,
    world: World = ALONE,
    splits: Splits | None = None,
) -> Population:
    splits = splits or open_data(recipe)
    return population_of(recipe, lambda number: task_of(make(number), splits), seams=seams, world=world)


def population_of(
    recipe: TrainPopulation,
    task: Callable[[int], Task],
    *,
    seams: Seams = NO_SEAMS,
    world: World = ALONE,
) -> Population:
    """Of members that learn any task, by their numbers."""
    grid = Grid(world, recipe.num_members, ranks_per_member=recipe.ranks_per_member)
    recipes, tasks = member_recipes(recipe), {number: task(number) for number in grid.members}
    flat = Flat([each.model for each in tasks.values()], CPU)
    members = [Member(number, recipes[number], each, grid=grid) for number, each in tasks.items()]
    for member in members:
        member.probe_for(recipe.linear_probe)
    return Population(members, flat, recipe, grid, seams=seams)


def states(trained: Population) -> list[dict[str, torch.Tensor]]:
    return [{k: v.clone() for k, v in member.model.state_dict().items()} for member in trained.members]


def assert_same_bits(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> None:
    assert len(a) == len(b) > 0
    for one, other in zip(a, b):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name
