"""Members replaced by mixtures of each other: who the parents are, who of the children lives on, and the act
itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from soupkit.jsons import Json
from soupkit.task.randomness import Stream
from soupkit.task.score import Score
from soupkit.train.population.exchange import everyone, mix, mixed_row, mutate
from soupkit.train.population.merging import Matrix, generation, mixing_matrix, survivors
from soupkit.train.population.regularise import member_name

if TYPE_CHECKING:
    from soupkit.train.population.population import Population

FITNESS = "nll"
"""What tournaments and selection go by, on held-out data; lower is fitter."""


def replace_members(population: Population, epoch: int) -> Json:
    """Make every member a mixture of the members after `epoch`; optimizers stay. Returns what was done,
    JSON-able.

    Everything random in it is drawn from (seed, epoch), so all ranks draw the same.
    """
    recipe = population.recipe
    random = np.random.default_rng([recipe.seed, Stream.MERGING, epoch])
    parents = _aligned(population)
    losses: list[float] = []
    if recipe.method == "greedy":
        matrix = np.tile(_greedy_row(population), (recipe.num_members, 1))
        children = list(range(recipe.num_members))
    else:
        matrix, children, losses = _drawn(population, random, epoch)
    mix(population.flat, population.grid, matrix)
    for row, number in enumerate(population.grid.members):
        _mutate(population, population.flat.row(row), children[number], epoch)
    if population.seams.repair is not None:
        repaired = everyone(population.flat, population.grid)
        population.seams.repair(repaired, parents, matrix)
        _take(population, repaired)
    return {"epoch": epoch, "coefficients": matrix.tolist()} | ({"losses": losses} if losses else {})


def _drawn(
    population: Population, random: np.random.Generator, epoch: int
) -> tuple[Matrix, list[int], list[float]]:
    """The next members: their coefficients, the number of the child that each is (−1: a parent), losses if
    known."""
    recipe, n = population.recipe, population.recipe.num_members
    losses = _losses(population, np.eye(n), [-1] * n, epoch) if recipe.tournament or recipe.selection else []
    chances = losses if recipe.tournament else None
    rounds = recipe.num_children if recipe.selection else 1
    children = np.concatenate(
        [mixing_matrix(recipe.method, n, random, losses=chances) for _ in range(rounds)]
    )
    if not recipe.selection:
        return children, list(range(n)), losses
    candidates, numbers = np.concatenate([np.eye(n), children]), [-1] * n + list(range(len(children)))
    losses = losses + _losses(population, children, numbers[n:], epoch)
    chosen = survivors(losses, n, random, elitism=recipe.elitism)
    return candidates[chosen], [numbers[k] for k in chosen], losses


def _losses(population: Population, matrix: Matrix, children: Sequence[int], epoch: int) -> list[float]:
    """Held-out losses of mixtures, each scored by one rank of the population."""
    world, judge = population.grid.world, population.seams.judge
    assert judge is not None
    own: list[tuple[int, float]] = []
    for number, (row, child) in enumerate(zip(matrix, children, strict=True)):
        mixed = mixed_row(population.flat, population.grid, row)
        if number % world.size == world.rank:
            _mutate(population, mixed, child, epoch)
            own.append((number, judge(_named(population, mixed), FITNESS).value))
    return [loss for _, loss in sorted(pair for part in world.gather(own) for pair in part)]


def _greedy_row(population: Population) -> Matrix:
    """The coefficients of a greedy soup of the members, chosen on held-out data."""
    world, seams, n = population.grid.world, population.seams, population.recipe.num_members
    assert seams.judge is not None
    assert seams.greedy is not None
    judge = seams.judge

    def score(coefficients: np.ndarray) -> Score:
        mixed = mixed_row(population.flat, population.grid, coefficients)
        found: Score = world.broadcast(judge(_named(population, mixed), "top1") if world.is_main else None)
        return found

    picks = list(seams.greedy([member_name(number) for number in range(n)], score))
    row = np.zeros(n)
    row[picks] = 1 / len(picks)
    return row


def _named(population: Population, row: dict[torch.dtype, Tensor]) -> dict[str, Tensor]:
    """A whole state: what is counted is of no effect, and a member's."""
    return population.flat.tensors(row) | population.flat.integers(0)


def _mutate(population: Population, row: dict[torch.dtype, Tensor], child: int, epoch: int) -> None:
    recipe = population.recipe
    if recipe.mutation_sigma and child >= 0:
        scale = recipe.mutation_sigma / generation(recipe, epoch)
        seed = (recipe.seed, epoch, child)
        mutate(population.flat, row, scale, seed=seed, normalize=recipe.mutation_normalize)


def _aligned(population: Population) -> list[dict[str, Tensor]]:
    """The parents as repair needs them, after alignment; nothing is copied where neither is asked for."""
    if population.seams.align is None and population.seams.repair is None:
        return []
    members = everyone(population.flat, population.grid)
    if population.seams.align is not None:
        population.seams.align(members)
        _take(population, members)
    return members


def _take(population: Population, members: Sequence[dict[str, Tensor]]) -> None:
    """Copy this rank's members back."""
    for row, number in enumerate(population.grid.members):
        for name, tensor in population.flat.tensors(population.flat.row(row)).items():
            tensor.copy_(members[number][name])
