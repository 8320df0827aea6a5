"""Ensembles of predictions, one member at a time.

Shapes: N examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import log_softmax

from soupkit.errors import TaskError
from soupkit.task.score import Predictions

Kind = Literal["logits", "softmax"]
KINDS: tuple[Kind, ...] = ("logits", "softmax")


@dataclass
class RunningEnsemble:
    """The means of logits and of probabilities over the members so far.

    Equal to `soupkit.task.images.metrics.ensemble` of all of them, with the memory of two: float64[N, C]
    each.
    """

    num_members: int = 0
    _sums: dict[Kind, np.ndarray] = field(default_factory=dict)
    _targets: np.ndarray | None = None

    def add(self, member: Predictions) -> None:
        """Take in one member. Raises TaskError for predictions of other examples or classes than before."""
        logits = member.outputs.astype(np.float64)
        if self._targets is None:
            self._targets = member.targets
            self._sums = {kind: np.zeros_like(logits) for kind in KINDS}
        if logits.shape != self._sums["logits"].shape or not np.array_equal(member.targets, self._targets):
            raise TaskError("an ensemble needs predictions of the same examples and classes")
        self._sums["logits"] += logits
        self._sums["softmax"] += np.exp(log_softmax(logits, axis=1))
        self.num_members += 1

    def predictions(self, kind: Kind) -> Predictions:
        """The mean logits, or the logarithms of the mean probabilities."""
        assert self._targets is not None
        mean = self._sums[kind] / self.num_members
        if kind == "softmax":
            with np.errstate(divide="ignore"):
                mean = np.maximum(np.log(mean), np.log(np.finfo(np.float64).tiny))
        return Predictions(mean.astype(np.float32), self._targets)
