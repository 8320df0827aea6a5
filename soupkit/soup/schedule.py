"""Learning rates of the coordinates over the steps of a run."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "constant", "linear", "step"]


def rate(schedule: Schedule, step: int, num_steps: int, *, warmup: float = 0.0) -> float:
    """The factor on the learning rate of step 0 … num_steps − 1.

    The first W = round(warmup · T) of T steps rise linearly, (s + 1)/W; of the rest, at u = (s − W)/(T − W): cosine
    (1 + cos πu)/2 (MEHL-Soup), linear 1 − u, step 1, then 0.1 from u = 1/2 and 0.01 from u = 3/4 (TWA), constant 1.
    """
    num_warmup = round(warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if schedule == "linear":
        return 1 - done
    if schedule == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    return 1.0
