"""Learning rates of the coordinates over the steps of a run."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "constant", "linear", "step"]


def rate(
    schedule: Schedule, step: int, num_steps: int, *, warmup: float = 0.0, num_epochs: int | None = None
) -> float:
    """The factor on the learning rate of step 0 … num_steps − 1.

    The first W = ⌊warmup · T⌋ of T steps rise linearly, (s + 1)/W; of the rest, at u = (s − W)/(T − W):
    cosine (1 + cos πu)/2 (MEHL-Soup), linear 1 − u, constant 1. step: of E epochs (default: as many as steps)
    1, then 0.1 from epoch ⌊E/2⌋, at least 1, and 0.01 from epoch ⌊3E/4 + 0.9⌋ on, as the code of TWA has it.
    """
    num_warmup = int(warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if schedule == "linear":
        return 1 - done
    if schedule == "step":
        epochs = num_epochs or num_steps
        epoch = (step - num_warmup) * epochs // max(1, num_steps - num_warmup)
        return 1.0 if epoch < max(1, epochs // 2) else 0.1 if epoch < int(0.75 * epochs + 0.9) else 0.01
    return 1.0
