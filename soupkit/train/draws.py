"""Hyper-parameters of a sweep, drawn at random, quasi-randomly or from a grid.

Run i is drawn from (seed, i) alone, so a sweep can grow: the first runs of a longer sweep are those of the
shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from soupkit.errors import RecipeError
from soupkit.recipe.train import FinetuneSweep
from soupkit.train.ranges import (
    DRAWN,
    Draw,
    Range,
    Settings,
    Value,
    dashed,
    in_order,
    parse_draw,
    parse_range,
)

__all__ = [
    "DRAWN",
    "HYPER_PARAMETERS",
    "Draw",
    "Settings",
    "Value",
    "draw_settings",
    "grid_size",
    "parse_draw",
    "ranges_of",
    "varying",
]

HYPER_PARAMETERS = (*DRAWN[:-1], "seed")
"""The same under the names of `soupkit finetune`."""


def ranges_of(recipe: FinetuneSweep) -> dict[str, Range]:
    """Every drawn option, read. Raises RecipeError for a malformed one."""
    return {name: parse_range(str(getattr(recipe, name)), name) for name in DRAWN}


def draw_settings(recipe: FinetuneSweep) -> list[Settings]:
    """The hyper-parameters of every run of a sweep, under the names that `soupkit finetune` gives them.

    random: numpy's PCG64 seeded by (seed, run). sobol: scrambled Sobol points (Owen 1998; scipy.stats.qmc), a
    coordinate per option that varies; an option under conditions has one coordinate, whichever branch is
    taken. grid: the points of all options (the Cartesian product where none depends on another), the last
    option fastest, cut off at num_runs.
    Raises RecipeError for a malformed option, for conditions in a circle, and for a range where a grid needs
    points.
    """
    ranges = ranges_of(recipe)
    if recipe.seed < 0:
        raise RecipeError(f"seed is {recipe.seed}, expected 0 or more")
    chosen = _grid(ranges, recipe.num_runs) if recipe.draw == "grid" else _drawn(ranges, recipe)
    return [_with_seed(settings, recipe.seed + run) for run, settings in enumerate(chosen)]


def grid_size(recipe: FinetuneSweep) -> int:
    """The number of points of the whole grid."""
    ranges = ranges_of(recipe)
    if not any(each.asks for each in ranges.values()):
        return math.prod(len(each.branches[0].draw.values) for each in ranges.values())
    return sum(1 for _ in _points({}, in_order(ranges), ranges))


def varying(settings: list[Settings]) -> list[str]:
    """The hyper-parameters that differ between runs, the seed left out: what a table of the sweep shows."""
    return (
        [name for name in settings[0] if name != "seed" and len({each[name] for each in settings}) > 1]
        if settings
        else []
    )


def _drawn(ranges: Mapping[str, Range], recipe: FinetuneSweep) -> list[Settings]:
    if recipe.num_runs < 1:
        raise RecipeError(f"num_runs is {recipe.num_runs}, expected at least 1 with --draw {recipe.draw}")
    names = [name for name, each in ranges.items() if each.varies]
    points = (_sobol if recipe.draw == "sobol" else _random)(recipe.seed, recipe.num_runs, len(names))
    order = in_order(ranges)
    return [_at(dict(zip(names, map(float, point), strict=True)), order, ranges) for point in points]


def _at(point: Mapping[str, float], order: list[str], ranges: Mapping[str, Range]) -> Settings:
    """The settings at one point of the unit cube, in the order of the options."""
    found: Settings = {}
    for name in order:
        found[name] = ranges[name].draw(found).at(point.get(name, 0.0))
    return {name: found[name] for name in ranges}


def _random(seed: int, num_runs: int, num_options: int) -> np.ndarray:
    """Points [num_runs × num_options] in [0, 1); row i depends on (seed, i) alone."""
    return np.stack([np.random.default_rng([seed, run]).random(num_options) for run in range(num_runs)])


def _sobol(seed: int, num_runs: int, num_options: int) -> np.ndarray:
    """The first rows of a scrambled Sobol sequence; it is drawn to the next power of two, where it is
    balanced."""
    from scipy.stats import qmc

    if num_options == 0:
        return np.zeros((num_runs, 0))
    generator = qmc.Sobol(num_options, scramble=True, seed=np.random.default_rng(seed))
    points: np.ndarray = generator.random_base2(math.ceil(math.log2(num_runs)))
    return points[:num_runs]


def _grid(ranges: Mapping[str, Range], num_runs: int) -> list[Settings]:
    for name, each in ranges.items():
        for branch in each.branches:
            _check_points(name, branch.draw)
    if num_runs < 0:
        raise RecipeError(f"num_runs is {num_runs}, expected 0 (the whole grid) or more")
    points = islice(_points({}, in_order(ranges), ranges), num_runs or None)
    return [{name: point[name] for name in ranges} for point in points]


def _points(known: Settings, order: list[str], ranges: Mapping[str, Range]) -> Iterator[Settings]:
    """Every point that goes on from what is known, the last option fastest."""
    if not order:
        yield known
        return
    for value in ranges[order[0]].draw(known).values:
        yield from _points(known | {order[0]: value}, order[1:], ranges)


def _check_points(name: str, draw: Draw) -> None:
    if draw.kind not in ("constant", "choice"):
        low, high = draw.values
        raise RecipeError(
            f"{name} is a range, {draw.kind}({low:g},{high:g}), but a grid needs points",
            hint=f"--{dashed(name)} 'choice({low:g},{high:g})', or --draw random",
        )


def _with_seed(settings: Settings, seed: int) -> Settings:
    drawn = settings.pop("run_seed")
    return settings | {"seed": seed if drawn is None else drawn}
