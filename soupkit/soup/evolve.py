"""Black-box search for the coefficients of a soup: CMA-ES (Hansen 2016, arXiv:1604.00772) over scores alone.

Shape suffixes: K ingredients, B blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from soupkit.errors import RecipeError
from soupkit.events import Advanced, Finished, Report, Scored, Started, Warned, silent
from soupkit.jsons import Json
from soupkit.metrics import Direction
from soupkit.soup.greedy import without_margins
from soupkit.task.score import Score, better

Constraint = Literal["softmax", "sum", "none"]


@dataclass(frozen=True)
class Evolved:
    """The best coefficients float64[K, B], their score, the start's, and the best score after every
    generation."""

    coefficients_KB: np.ndarray
    score: Score
    start: Score
    history: tuple[float, ...]
    num_evaluations: int


def coefficients_of(point: np.ndarray, num_ingredients: int, constraint: Constraint) -> np.ndarray:
    """Coefficients float64[K, B] of a point of the search; zeros are the uniform soup, whatever the
    constraint.

    softmax: softmax_k(x_kb). sum: 1/K + (x_kb − mean_k x_kb)/K, which sums to one. none: (1 + x_kb)/K.
    """
    x_KB = point.reshape(num_ingredients, -1)
    if constraint == "softmax":
        exponents_KB = np.exp(x_KB - x_KB.max(0))
        softmax_KB: np.ndarray = exponents_KB / exponents_KB.sum(0)
        return softmax_KB
    if constraint == "sum":
        x_KB = x_KB - x_KB.mean(0)
    return (1 + x_KB) / num_ingredients


def evolve(
    score: Callable[[np.ndarray], Score],
    num_ingredients: int,
    num_blocks: int,
    *,
    constraint: Constraint = "softmax",
    direction: Direction = "max",
    evaluations: int = 200,
    population: int | None = None,
    sigma: float = 0.5,
    seed: int = 0,
    report: Report = silent,
) -> Evolved:
    """Search from the uniform soup; `score` takes coefficients float64[K, B].

    The same scores give the same search, so a run that remembers its scores goes on where it ended. NaN
    counts as the worst. Cost: at most `evaluations` scores, the start's included; the last generation is cut
    short where they end. Raises RecipeError when the package `cma` is missing.
    """
    size = num_ingredients * num_blocks
    search = _strategy(size, sigma=sigma, seed=seed, population=population) if size > 1 else None
    start_KB = coefficients_of(np.zeros(size), num_ingredients, constraint)
    if search is not None and evaluations < 1 + search.popsize:
        report(Warned(_too_few(evaluations, search.popsize)))
    start = without_margins(score(start_KB))
    best, found, history, num_done = start, start_KB, [start.value], 1
    if search is None:
        return Evolved(found, best, start, tuple(history), num_done)
    report(Started("evolving", evaluations, "soups"))
    report(Advanced("evolving", 1, f"uniform {start.value:.4f}"))
    while num_done < evaluations and not search.stop():
        points = search.ask()
        scores: list[Score] = []
        for point in points[: evaluations - num_done]:
            coefficients_KB = coefficients_of(np.asarray(point), num_ingredients, constraint)
            scores.append(without_margins(score(coefficients_KB)))
            if better(scores[-1].value, best.value, direction):
                best, found = scores[-1], coefficients_KB
                report(
                    Scored(
                        f"soup {num_done}", best.metric, best.value, best.standard_error, best.num_examples
                    )
                )
            num_done += 1
            report(Advanced("evolving", 1, f"best {best.value:.4f}"))
        if len(scores) == len(points):
            search.tell(points, [_loss(each, direction) for each in scores])
        history.append(best.value)
    report(Finished("evolving"))
    return Evolved(found, best, start, tuple(history), num_done)


def _too_few(evaluations: int, population: int) -> str:
    return (
        f"{evaluations} evaluations are less than the uniform soup and one generation of {population}: "
        f"soups are only "
        f"drawn at random (--evaluations {1 + population} or more searches, or a smaller --population)"
    )


def _strategy(size: int, *, sigma: float, seed: int, population: int | None) -> Any:
    try:
        import cma
    except ImportError as error:
        raise RecipeError("the package cma is not installed", hint="pip install 'soupkit[evolve]'") from error
    options: Json = {"seed": seed + 1, "verbose": -9}  # cma takes 0 for the clock
    if population:
        options["popsize"] = population
    strategy: Any = cma.CMAEvolutionStrategy  # the package has no types
    return strategy(np.zeros(size), sigma, options)


def _loss(score: Score, direction: Direction) -> float:
    """What CMA-ES minimises."""
    if math.isnan(score.value):
        return 1e300
    return -score.value if direction == "max" else score.value
