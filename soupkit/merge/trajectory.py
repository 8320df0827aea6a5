"""Coefficients of the checkpoints of one training: those of a learning-rate decay that was never run, or of
an average.

With u_i what the training did between the checkpoints i − 1 and i, a decay to the share w_i of the learning
rate would have ended in θ_0 + Σ_i w_i u_i = Σ_j c_j θ_j with c_0 = 1 − w_1, c_j = w_j − w_{j+1}, c_K = w_K
(Tian et al. 2025, arXiv:2507.17634, eq. 5). w_i is the mean of w(t) between the two checkpoints, so they may
lie at any distances, and the sum is exact wherever the training went evenly in between.

Shape suffixes: K checkpoints, P points of a curve. Positions are shares of the window: 0 its first
checkpoint, 1 its last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from soupkit.errors import RecipeError
from soupkit.merge.running import Bema

Vector = NDArray[np.float64]
Integral = Callable[[Vector], Vector]
"""∫₀ˢ w of a decay w, at positions s."""


def linear(at: Vector) -> Vector:
    """Of w = 1 − s: the mean over time, each checkpoint counting for half of what lies on its two sides."""
    return at - at**2 / 2


def cosine(at: Vector) -> Vector:
    """Of w = (1 + cos πs) / 2."""
    return at / 2 + np.sin(np.pi * at) / (2 * np.pi)


def power(exponent: float) -> Integral:
    """Of w = 1 − s^p: ½ is the minus-sqrt decay, 1 the linear one; a power-function EMA with γ = p − 1."""
    return lambda at: at - at ** (exponent + 1) / (exponent + 1)


def curve(at_P: Vector, values_P: Vector) -> Integral:
    """Of straight lines between points, whose positions ascend from 0 to 1."""
    pieces = np.diff(at_P) * (values_P[1:] + values_P[:-1]) / 2
    sums_P = np.append(0.0, np.cumsum(pieces))

    def integral(at: Vector) -> Vector:
        left = np.clip(np.searchsorted(at_P, at, side="right") - 1, 0, len(at_P) - 2)
        here = np.interp(at, at_P, values_P)
        found: Vector = sums_P[left] + (at - at_P[left]) * (values_P[left] + here) / 2
        return found

    return integral


def decayed(integral: Integral, steps_K: Vector) -> Vector:
    """c_K of a decay over checkpoints at these ascending steps; they sum to one. Alone, the checkpoint
    itself."""
    if len(steps_K) == 1:
        return np.ones(1)
    at_K = (steps_K - steps_K[0]) / (steps_K[-1] - steps_K[0])
    means = np.diff(integral(at_K)) / np.diff(at_K)
    found: Vector = np.append(1.0, means) - np.append(means, 0.0)
    return found


def ema(steps_K: Vector, half_life: float, *, debias: bool = False) -> Vector:
    """An exponential moving average whose weights halve within `half_life` steps, whatever the spacing.

    w̄ ← d_j w̄ + (1 − d_j) θ_j with d_j = 2^(−(t_j − t_{j−1}) / half-life). It begins as the first
    checkpoint, which keeps what is left of the weight; debias: it begins as zero and is divided by what it
    has seen (Kingma & Ba 2015, arXiv:1412.6980, §3), where the first checkpoint stands for as many steps as
    the second.
    """
    if len(steps_K) == 1:
        return np.ones(1)
    gaps = np.diff(steps_K)
    decays = np.exp2(-np.append(gaps[0], gaps) / half_life)
    rates = 1 - decays
    if not debias:
        rates[0] = 1.0
    found: Vector = rates * np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
    return found / found.sum() if debias else found


def bema(steps_K: Vector, rule: Bema = Bema()) -> Vector:  # noqa: B008  (frozen)
    """Bias-corrected EMA over checkpoints: the average takes β_t of each, and θ_0 is the first of the window.

    Sums to one; c_0 may be negative. See `soupkit.merge.running.Bema`, whose `every` and `start` say nothing
    here.
    """
    found = np.zeros(len(steps_K))
    found[0] = 1.0
    for place, step in enumerate(steps_K[1:], start=1):
        rate = rule.beta(step)
        found *= 1 - rate
        found[place] += rate
    pull = rule.alpha(steps_K[-1])
    found[-1] += pull
    found[0] -= pull
    return found


def valley(losses: Sequence[float], *, patience: int = 3, overfits: int = 6, tolerance: float = 1.3) -> range:
    """The window of SWAD in a series of validation losses (Cha et al. 2021, arXiv:2102.08604, Algorithm 1).

    It begins where a loss is the least of `patience` (N_s) in a row, and ends before `overfits` (N_e) in a
    row that are all above `tolerance` (r) times the mean of those first; else with the series. Raises
    RecipeError where none begins.
    """
    start, limit = None, 0.0
    for last in range(patience - 1, len(losses)):
        if start is None:
            row = losses[last - patience + 1 : last + 1]
            if row[0] == min(row):
                start, limit = last - patience + 1, tolerance * sum(row) / patience
        elif last - overfits >= start and limit < min(losses[last - overfits + 1 : last + 1]):
            return range(start, last - overfits + 1)
    if start is None:
        raise RecipeError(
            f"no loss is the least of {patience} in a row: the {len(losses)} losses only fall",
            hint="give a window by its steps, or fewer losses in a row: --swad 2,6,1.3",
        )
    return range(start, len(losses))
