"""The loss barrier between two models: how much worse the straight line between them is than its ends.

Shapes: P points, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from soupkit.jsons import Json
from soupkit.task.score import share_error


@dataclass(frozen=True)
class Barrier:
    """The largest excess along the line, where it is, and its standard error over the examples (of that one
    point)."""

    height: float
    standard_error: float
    at: float
    num_examples: int

    def to_json(self) -> Json:
        """All of it, JSON-able."""
        return dict(vars(self))


def excess(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """v(λ) − (1 − λ) v(0) − λ v(1): how far each point of a path lies above the line between its ends.

    The maximum is the barrier (Frankle et al. 2020, arXiv:1912.05671, §2, without its mean of the ends; as in
    Entezari et al. 2022, arXiv:2110.06296, eq. 1), which is never below zero, for the ends are points too.
    values: float64[P] or [P, N]; at: λ of each point, from 0 to 1, float64[P] or [P, 1].
    """
    rise: np.ndarray = values - (1 - at) * values[0] - at * values[-1]
    return rise


def barrier(values_pn: np.ndarray, at: Sequence[float], *, shares: bool = False) -> Barrier:
    """The barrier of a mean over examples.

    values_pn: the loss (or error) of every example at every point; at: λ of each point. The standard error is
    that of the paired differences at the highest point; with `shares` (the values are 0 or 1) it is
    `share_error`, which is not 0 where no example tells the points apart.
    """
    excess_pn = excess(values_pn, np.asarray(at, np.float64)[:, None])
    means = excess_pn.mean(1)
    highest = int(means.argmax())
    n = values_pn.shape[1]
    excess_n = excess_pn[highest]
    error = float(excess_n.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    if shares:
        error = share_error(float(excess_n.var()), n)
    return Barrier(float(means[highest]), error, float(at[highest]), n)
