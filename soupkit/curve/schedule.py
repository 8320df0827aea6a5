"""Learning rates as functions of the update, and the updates after which a model is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Rate = Callable[[int], float]
"""update number, from 0 → learning rate of that update"""


def curve_rate(lr: float, num_updates: int) -> Rate:
    """lr for half of the training, then linearly down to lr / 100 at 90 % of it, and so to the end.

    Garipov et al. 2018 (arXiv:1802.10026, as its code trains curves) step it once per epoch; here it moves
    with every update.
    """

    def rate(update: int) -> float:
        share = update / num_updates
        return lr * (1.0 if share <= 0.5 else 0.01 if share > 0.9 else 1.0 - 0.99 * (share - 0.5) / 0.4)

    return rate


@dataclass(frozen=True)
class Cycles:
    """A cyclical learning rate over n updates per cycle, between lr_1 (the most) and lr_2 (the least).

    With t = (i mod n) / n for update i = 0, 1, …:
    fge: (1 − 2t) lr_1 + 2t lr_2 for t ≤ ½, else (2 − 2t) lr_2 + (2t − 1) lr_1, kept in mid-cycle, after the
    n/2-th update (Garipov et al. 2018, arXiv:1802.10026, §5).
    snapshot: lr_2 + (lr_1 − lr_2) (cos πt + 1) / 2, kept at the end of a cycle (Huang et al. 2017,
    arXiv:1704.00109, eq. 2, with lr_2 = 0).
    swa: (1 − t') lr_1 + t' lr_2 with t' = (i mod n + 1) / n, kept at the end of a cycle (Izmailov et al.
    2018, arXiv:1803.05407, §3.1).
    """

    kind: Literal["fge", "snapshot", "swa"]
    lr_1: float
    lr_2: float
    num_updates: int

    def rate(self, update: int) -> float:
        """The learning rate of an update."""
        t = (update % self.num_updates) / self.num_updates
        if self.kind == "fge":
            low = 2 * t if t <= 0.5 else 2 - 2 * t
            return (1 - low) * self.lr_1 + low * self.lr_2
        if self.kind == "snapshot":
            return self.lr_2 + (self.lr_1 - self.lr_2) * (math.cos(math.pi * t) + 1) / 2
        end = t + 1 / self.num_updates
        return (1 - end) * self.lr_1 + end * self.lr_2

    def keeps(self, num_done: int) -> bool:
        """Whether the model is kept when `num_done` updates are done."""
        place = self.num_updates // 2 if self.kind == "fge" else 0
        return num_done > 0 and num_done % self.num_updates == place
