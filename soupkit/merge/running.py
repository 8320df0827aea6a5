"""Running averages along a trajectory of weights: EMA, SWA, power functions, and their coefficients in closed
form.

A rule says how far the average moves at each step: w̄ ← w̄ + rate(t)·(w_t − w̄). Unrolled, it is a mixture of
the weights that it saw, so the same rules serve training, where they are stepped, and merging, where they are
coefficients.

Shape suffixes: T steps, S snapshots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from soupkit.errors import RecipeError

CHUNK = 1 << 20
"""Entries of a profile that are held at a time."""


class Rule(Protocol):
    """How far a running average moves towards the weights at step t = 1, 2, …: in (0, 1], None: not at all.

    The first rate that is not None is 1, so an average begins as a copy and knows nothing of what was before.
    """

    def rate(self, step: int) -> float | None: ...


@dataclass(frozen=True)
class Ema:
    """Exponential moving average: w̄ ← d·w̄ + (1 − d)·w at the steps start + 1, start + 1 + every, …

    With gamma, the decay warms up: d_t = min(decay, 1 − (1 + s/γ)^(−power)) with s = t − start − 1, as in
    timm's ModelEmaV3 and ema-pytorch: a short average early on, a long one later. The decay is that of one
    averaging, whatever `every` is. Raises RecipeError for values outside of their ranges.
    """

    decay: float
    every: int = 1
    start: int = 0
    gamma: float | None = None
    power: float = 2 / 3

    def __post_init__(self) -> None:
        _require(0 <= self.decay < 1, "decay", self.decay, "0 or more and less than 1")
        _require(self.gamma is None or 0 < self.gamma < math.inf, "gamma", self.gamma, "above 0")
        _require(0 < self.power < math.inf, "power", self.power, "above 0")
        _check_steps(self.every, self.start)

    @classmethod
    def of_half_life(cls, half_life: float, *, every: int = 1, start: int = 0) -> Ema:
        """The one whose weights halve within so many steps: d = 2^(−every / half-life)."""
        _require(0 < half_life < math.inf, "half_life", half_life, "above 0")
        return cls(2 ** (-every / half_life), every=every, start=start)

    def rate(self, step: int) -> float | None:
        """1 − d_t, 1 at the first averaging, None between averagings."""
        since = step - self.start - 1
        if since < 0 or since % self.every:
            return None
        if since == 0:
            return 1.0
        slowest = math.inf if self.gamma is None else (1 + since / self.gamma) ** -self.power
        return 1 - self.decay if self.gamma is None else max(1 - self.decay, slowest)


@dataclass(frozen=True)
class Bema:
    """Bias-corrected EMA: EMA_t + α_t (θ_t − θ_0) (Block & Zhang 2025, arXiv:2508.00180, Algorithm 1).

    The average moves by β_t = (ρ + t)^−κ at the steps start + every, start + 2·every, …; the correction is
    α_t = (ρ + t)^−η times the way from θ_0, the weights at step `start` (at step 1 for 0). ema: κ, bias: η,
    lag: ρ. Raises RecipeError.
    """

    ema: float = 0.5
    bias: float = 0.2
    lag: float = 10.0
    every: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        for name in ("ema", "bias", "lag"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "above 0")
        _check_steps(self.every, self.start)

    def rate(self, step: int) -> float | None:
        """β_t, 1 where it begins, None between averagings."""
        since = step - max(self.start, 1)
        if since <= 0:
            return 1.0 if since == 0 else None
        return None if (step - self.start) % self.every else self.beta(step)

    def beta(self, step: float) -> float:
        """How far the average moves at a step."""
        return float((self.lag + step) ** -self.ema)

    def alpha(self, step: float) -> float:
        """The share of the way from θ_0 that is added at a step."""
        return float((self.lag + step) ** -self.bias)


@dataclass(frozen=True)
class Planned:
    """A mixture of the weights at steps that are known before, such as a learning-rate decay that is not run.

    coefficients: of the weights at `steps`, which ascend; divided by their sum. rate = c_j / (c_0 + … + c_j),
    so the average is whole at any time, and as planned from the last step on. Raises RecipeError for
    coefficients that sum to zero or less on the way.
    """

    steps: tuple[int, ...]
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        ascend = all(a < b for a, b in zip((0, *self.steps), self.steps, strict=False))
        _require(ascend and bool(self.steps), "steps", self.steps, "ascending, from 1 on")
        same = len(self.steps) == len(self.coefficients)
        _require(same, "coefficients", self.coefficients, "one for each step")
        sums = [sum(self.coefficients[: place + 1]) for place in range(len(self.steps))]
        _require(min(sums) > 0, "coefficients", self.coefficients, "sums above 0 from the first on")

    def rate(self, step: int) -> float | None:
        """What the weights of a step weigh against those before; None at other steps."""
        if step not in self.steps:
            return None
        place = self.steps.index(step)
        return self.coefficients[place] / sum(self.coefficients[: place + 1])


@dataclass(frozen=True)
class Swa:
    """The mean of the weights at the steps start + every, start + 2·every, … (Izmailov et al. 2018,
    arXiv:1803.05407).

    w̄ ← w̄ + (w − w̄)/(n + 1) with n weights averaged so far (their Algorithm 1). Raises RecipeError.
    """

    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        _check_steps(self.every, self.start)

    def rate(self, step: int) -> float | None:
        """1/(n + 1), None between averagings."""
        since = step - self.start
        return None if since <= 0 or since % self.every else self.every / since


@dataclass(frozen=True)
class PowerEma:
    """Power-function EMA, whose length grows with training (Karras et al. 2024, arXiv:2312.02696, eqs. 1 and
    2).

    w̄(t) = ∫₀ᵗ τ^γ w(τ) dτ / ∫₀ᵗ τ^γ dτ, stepped as w̄ ← β_t·w̄ + (1 − β_t)·w with β_t = (1 − 1/t)^(γ + 1).
    In steps it is the mixture with coefficients (s/t)^(γ + 1) − ((s − 1)/t)^(γ + 1). Raises RecipeError.
    """

    gamma: float

    def __post_init__(self) -> None:
        _require(-1 < self.gamma < math.inf, "gamma", self.gamma, "above −1")

    @classmethod
    def of_width(cls, sigma_rel: float) -> PowerEma:
        """The profile whose standard deviation is σ_rel of the training so far.

        σ_rel = (γ + 1)^½ (γ + 2)^−1 (γ + 3)^−½ (their eq. 3); σ_rel below about 0.2886, where γ = 0, the
        plain mean.
        """
        flattest = 1 / math.sqrt(12)
        _require(
            0 < sigma_rel < flattest,
            "sigma_rel",
            sigma_rel,
            f"above 0 and below {flattest:.4f} (the plain mean)",
        )
        # (γ + 2)²(γ + 3) σ² = γ + 1 with x = γ + 1: σ²x³ + 4σ²x² + (5σ² − 1)x + 2σ² = 0, largest root
        square = sigma_rel**2
        roots = np.roots([square, 4 * square, 5 * square - 1, 2 * square])
        return cls(float(max(roots.real)) - 1)

    @property
    def sigma_rel(self) -> float:
        """The standard deviation of the profile, relative to the training so far."""
        return math.sqrt(self.gamma + 1) / ((self.gamma + 2) * math.sqrt(self.gamma + 3))

    def rate(self, step: int) -> float | None:
        """1 − β_t."""
        return 1.0 if step == 1 else -math.expm1((self.gamma + 1) * math.log1p(-1 / step))

    def profile(self, at: int, steps_T: NDArray[np.float64]) -> NDArray[np.float64]:
        """The coefficients of the weights at some steps in the average at step `at`; zero for later steps."""
        share = np.minimum(steps_T / at, 1.0)
        before = np.minimum((steps_T - 1) / at, 1.0)
        profile: NDArray[np.float64] = share ** (self.gamma + 1) - before ** (self.gamma + 1)
        return profile


def coefficients(rule: Rule, num_steps: int) -> NDArray[np.float64]:
    """The coefficient of the weights of each step in the running average after the last: r_s Π_{u>s} (1 −
    r_u).

    float64[T], summing to one. Raises RecipeError when the rule averages nothing in so many steps.
    """
    rates = [rule.rate(step) for step in range(1, num_steps + 1)]
    if all(rate is None for rate in rates):
        raise RecipeError(
            f"nothing is averaged in {num_steps} steps", hint="start earlier, or average more often"
        )
    rates_T = np.array([0.0 if rate is None else rate for rate in rates])
    kept_T = np.append(np.cumprod((1 - rates_T)[:0:-1])[::-1], 1.0)
    result: NDArray[np.float64] = rates_T * kept_T
    return result


@dataclass(frozen=True)
class Snapshot:
    """A power-function EMA at one step: what post-hoc synthesis is made from."""

    rule: PowerEma
    step: int


def synthesise(snapshots: Sequence[Snapshot], target: Snapshot) -> tuple[NDArray[np.float64], float]:
    """The mixture of snapshots that is nearest to an EMA of another width: post-hoc EMA (Karras et al. 2024,
    App. C).

    Least squares in the profiles: coefficients x[S] that minimise ‖Σ_i x_i p_i − p‖², from the Gram matrix of
    profiles; here subject to Σ x = 1, so that weights which do not move are kept. Coefficients may be
    negative. Deviation: sums over steps, which is what was averaged, where the paper integrates. Returns
    float64[S] and ‖Σ_i x_i p_i − p‖/‖p‖. Cost: snapshots × steps powers. Raises RecipeError for a target
    after the last snapshot.
    """
    if target.step > max(snapshot.step for snapshot in snapshots):
        last = max(snapshot.step for snapshot in snapshots)
        raise RecipeError(
            f"the average is asked for at step {target.step}, the last snapshot is of step {last}"
        )
    gram = _gram([*snapshots, target])
    scale = 1 / np.sqrt(np.diag(gram)[:-1])
    number = len(snapshots)
    bordered = np.zeros((number + 1, number + 1))
    bordered[:number, :number] = gram[:-1, :-1] * scale * scale[:, None]
    bordered[number, :number] = bordered[:number, number] = scale  # Σ x = 1, by a Lagrange multiplier
    right = np.append(gram[:-1, -1] * scale, 1.0)
    solved: NDArray[np.float64] = np.linalg.lstsq(bordered, right, rcond=1e-12)[0][:number] * scale
    solved /= solved.sum()
    difference = np.append(solved, -1.0)
    return solved, math.sqrt(max(difference @ gram @ difference, 0.0) / gram[-1, -1])


def _gram(snapshots: Sequence[Snapshot]) -> NDArray[np.float64]:
    """Σ_t p_i(t) p_j(t) over all steps, a chunk of steps at a time."""
    last = max(snapshot.step for snapshot in snapshots)
    size = max(1, CHUNK // len(snapshots))
    gram = np.zeros((len(snapshots),) * 2)
    for start in range(1, last + 1, size):
        steps_T = np.arange(start, min(start + size, last + 1), dtype=np.float64)
        profiles_ST = np.stack([snapshot.rule.profile(snapshot.step, steps_T) for snapshot in snapshots])
        gram += profiles_ST @ profiles_ST.T
    return gram


def _check_steps(every: int, start: int) -> None:
    _require(every >= 1, "every", every, "at least 1")
    _require(start >= 0, "start", start, "0 or more")


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise RecipeError(f"{name} is {value}, expected {expected}")
