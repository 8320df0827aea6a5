"""How members become the next members: a matrix of coefficients, one row per child, one column per parent.

Variants: Jolicoeur-Martineau et al. 2024 (PAPA, arXiv:2304.03094); tournaments, selection and mutation: Cui
et al. 2018 (ESGD, arXiv:1810.06773). Shape suffixes: n members, C children.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from soupkit.recipe.population import PAIRED, TrainPopulation

Matrix = NDArray[np.float64]
Pairs = NDArray[np.int64]
TINY_LOSS = 1e-5
"""Keeps a perfect member from being the parent of everything."""


def pull_strength(recipe: TrainPopulation, rate: float) -> float:
    """1 − α_t of w_j ← α_t w_j + (1 − α_t) w̄, at a learning rate that is `rate` of the highest.

    1 − α_t = (1 − α)·η_t/η_0 (linear), (1 − α)·sqrt(η_t/η_0) (sqrt), 1 − α (none).
    """
    scales: dict[str, float] = {"linear": rate, "sqrt": rate**0.5, "none": 1.0}
    return recipe.pulls * scales[recipe.lr_scaling]


def merges_after(recipe: TrainPopulation, epoch: int) -> bool:
    """Whether members are replaced after the 0-based `epoch`; never after the last, so that every child is
    trained."""
    low, high = recipe.merge_range
    return (
        recipe.merges
        and epoch % recipe.merge_every == 0
        and (epoch > 0 or recipe.merge_first)
        and low * recipe.epochs <= epoch + 1 <= high * recipe.epochs
        and epoch + 1 < recipe.epochs
    )


def generation(recipe: TrainPopulation, epoch: int) -> int:
    """The number, from 1, of the merging after `epoch`."""
    return sum(merges_after(recipe, earlier) for earlier in range(epoch + 1))


def mixing_matrix(
    method: str, n: int, random: np.random.Generator, *, losses: Sequence[float] | None = None
) -> Matrix:
    """float64[n × n]: row c holds child c's coefficients of the parents; they sum to one.

    papa-all: 1/n everywhere. papa-2 and pair-75: ½ + ½, and ¾ + ¼ with a fair coin for the order, of n
    different pairs, drawn uniformly from all of them (with two members there is one pair, which every child
    is of); losses: pairs are drawn one by one, each parent with p ∝ 1/(loss + 1e-5). many-half, many-75: ½ or
    ¾ of itself, the rest of all others equally. random: rows from the flat Dirichlet distribution.
    """
    if n == 1:
        return np.eye(1)
    if method == "papa-all":
        return np.full((n, n), 1 / n)
    if method in PAIRED:
        pairs = _drawn_by_fitness(n, random, losses) if losses is not None else _drawn_pairs(n, random)
        return _paired(pairs, n, random, first=0.5 if method == "papa-2" else 0.75)
    if method in ("many-half", "many-75"):
        own = 0.5 if method == "many-half" else 0.75
        matrix = np.full((n, n), (1 - own) / (n - 1))
        np.fill_diagonal(matrix, own)
        return matrix
    assert method == "random"
    return random.dirichlet(np.ones(n), size=n)


def survivors(losses: Sequence[float], n: int, random: np.random.Generator, *, elitism: float) -> list[int]:
    """Who of the candidates lives on: the round(elitism·n) with the lowest losses, the rest by lot from the
    others."""
    ranking = np.argsort(losses, kind="stable")
    num_elite = round(elitism * n)
    lucky = random.permutation(ranking[num_elite:])[: n - num_elite]
    return [int(k) for k in (*ranking[:num_elite], *lucky)]


def _drawn_pairs(n: int, random: np.random.Generator) -> Pairs:
    """int[n × 2]: different pairs of different parents, every set of pairs as likely as any other."""
    pairs: Pairs = np.stack(np.triu_indices(n, k=1), axis=1).astype(np.int64)
    chosen = random.choice(len(pairs), size=n, replace=len(pairs) < n)
    return pairs[chosen]


def _drawn_by_fitness(n: int, random: np.random.Generator, losses: Sequence[float]) -> Pairs:
    fitness = 1 / (np.asarray(losses, np.float64) + TINY_LOSS)
    fitness[~np.isfinite(fitness)] = 0
    shares = (fitness + 1e-12) / (fitness + 1e-12).sum()
    return np.stack([random.choice(n, size=2, replace=False, p=shares) for _ in range(n)])


def _paired(pairs: Pairs, n: int, random: np.random.Generator, *, first: float) -> Matrix:
    swapped = random.random(n) < 0.5
    matrix, rows = np.zeros((n, n)), np.arange(n)
    matrix[rows, np.where(swapped, pairs[:, 1], pairs[:, 0])] = first
    matrix[rows, np.where(swapped, pairs[:, 0], pairs[:, 1])] = 1 - first
    return matrix
