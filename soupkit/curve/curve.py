"""A curve through weight space: every point is a linear soup of its bends.

Shape suffixes: B bends, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from soupkit.errors import CheckpointError
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture

Kind = Literal["bezier", "polychain"]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """w(t) = Σ_j c_j(t) w_j for t in 0 … 1 (Garipov et al. 2018, arXiv:1802.10026, §3.2).

    With n = B − 1, bezier: c_j(t) = C(n, j) t^j (1 − t)^(n−j); polychain, straight pieces of equal length in
    t: c_j(t) = max(0, 1 − |n t − j|). num_bends counts the ends. Coefficients sum to one; at t = 0 and t = 1
    they are exactly those of the ends.
    """

    kind: Kind
    num_bends: int

    def __post_init__(self) -> None:
        assert self.num_bends >= 2

    def coefficients(self, t: float) -> Vector:
        """c(t), float64[B]."""
        n = self.num_bends - 1
        if self.kind == "bezier":
            return np.array([math.comb(n, j) * t**j * (1 - t) ** (n - j) for j in range(n + 1)])
        hats: Vector = np.maximum(0.0, 1.0 - np.abs(n * t - np.arange(n + 1)))
        return hats

    def mixture(self, t: float, bends: Sequence[str]) -> Mixture:
        """The point at t as a mixture of the bends with these names."""
        return Mixture(tuple(bends), self.coefficients(t)[:, None])

    def to_json(self) -> Json:
        """What a manifest records."""
        return {"kind": self.kind, "num_bends": self.num_bends}

    @classmethod
    def from_json(cls, values: object) -> Curve:
        """The inverse of `to_json`. Raises CheckpointError for what is no record of a curve."""
        record = values if isinstance(values, dict) else {}
        kind, num_bends = record.get("kind"), record.get("num_bends")
        if kind not in ("bezier", "polychain") or type(num_bends) is not int or num_bends < 2:
            raise CheckpointError(
                f"{values!r} is not the record of a curve", hint="soupkit curve fit writes curves"
            )
        return cls(kind, num_bends)


def points(num_points: int) -> list[float]:
    """P values of t at equal steps from 0 to 1, both included."""
    return [i / (num_points - 1) for i in range(num_points)]
