"""Populations of small models on any device, alone and in ranks."""

from __future__ import annotations

from typing import Any

import torch
from train.population_small import no_dropout, population_recipe
from train.small import SETTINGS

from soupkit.events import silent
from soupkit.recipe.population import TrainPopulation
from soupkit.task.images.data import Splits, open_data
from soupkit.task.images.task import ImageTask
from soupkit.task.spec import ModelSpec
from soupkit.train.population.flat import Flat
from soupkit.train.population.grid import Grid
from soupkit.train.population.members import Member
from soupkit.train.population.population import Population
from soupkit.train.population.regularise import member_recipes
from soupkit.world import World


def recipe(**values: Any) -> TrainPopulation:
    """Two updates of two members, pulled after each."""
    few = {"num_members": 2, "num_train": 32, "epochs": 1, "amp": "off", "decay": 0.9, "average_every": 1}
    return population_recipe(**(few | values))


def task_on(device: torch.device, model: torch.nn.Module, splits: Splits) -> ImageTask:
    """A model that learns images on a device."""
    return ImageTask(model, ModelSpec("timm", "small"), splits, SETTINGS, device=device)


def population_in(world: World, wanted: TrainPopulation) -> Population:
    """This rank's members, where the world says."""
    device, grid, recipes = world.torch_device(), Grid(world, wanted.num_members), member_recipes(wanted)
    splits = open_data(wanted)
    tasks = [task_on(device, no_dropout(number), splits) for number in grid.members]
    flat = Flat([task.model for task in tasks], device)
    members = [Member(number, recipes[number], task, grid=grid) for number, task in zip(grid.members, tasks)]
    return Population(members, flat, wanted, grid)


def in_rank(device: str) -> dict[str, Any]:
    """What a rank saw: sums on its device and on the CPU, what all said, and losses of a population."""
    world = World(device, threads=1)
    with world.group():
        numbers = torch.full((3,), world.rank + 1.0, device=world.torch_device())
        world.all_reduce(numbers)
        on_cpu = torch.ones(2, dtype=torch.float64)
        world.all_reduce(on_cpu)
        told = world.broadcast({"from": world.rank})
        trained = population_in(world, recipe())
        trained.train(silent)
    return {
        "sums": numbers.tolist(),
        "on the CPU": on_cpu.tolist(),
        "told": told,
        "losses": trained.history.losses,
    }
