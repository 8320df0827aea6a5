"""Which checkpoints of a training a window means, by steps, tokens, shares or losses; and the series that say
it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soupkit.errors import RecipeError, brief
from soupkit.merge.trajectory import Integral, Vector, curve, valley

_QUANTITY = re.compile(
    r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,18})?(?:e[0-9]{1,2})?)(?P<unit>[kmbt]?)(?P<of>%|tok|)", re.IGNORECASE
)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_LAST = re.compile(r"last([0-9]{1,9})")
Pairs = tuple[Vector, Vector]
"""Two columns of numbers."""


@dataclass(frozen=True)
class Units:
    """How quantities are read: tokens_per_step, and what 100 % is of."""

    whole: float
    tokens_per_step: float | None = None

    def steps(self, text: str) -> float:
        """`40k` and `1.5e6` as steps, `10%` of the whole, `2Btok` by the tokens of a step. Raises
        RecipeError."""
        found = _QUANTITY.fullmatch(text.strip())
        if not found:
            raise RecipeError(
                f"{brief(text)} is no number of steps", hint="write 40k, 1.5M, 50%, or 2Btok for tokens"
            )
        number = float(found["number"]) * _UNITS[found["unit"].lower()]
        if found["of"] == "%":
            return number * self.whole / 100
        if found["of"]:
            if self.tokens_per_step is None:
                raise RecipeError(
                    f"{text} counts tokens", hint="say how many a step has: --tokens-per-step N"
                )
            return number / self.tokens_per_step
        return number


def half_life(text: str, units: Units) -> float:
    """A half-life in steps. Raises RecipeError for none that is above 0."""
    found = units.steps(text)
    if found <= 0:
        raise RecipeError(f"half_life is {text}, expected more than 0 steps")
    return found


def rows_of(
    window: str,
    steps_K: Vector,
    *,
    tokens_per_step: float | None = None,
    losses: Pairs | None = None,
    swad: Sequence[float] = (3, 6, 1.3),
) -> range:
    """The checkpoints, which ascend by steps, of a window: `40k..880k`, `50%..`, `last10`, or `swad` by
    losses.

    Ends belong to it; a share is one of all steps until the last checkpoint. Raises RecipeError for a window
    that cannot be read, or that holds no checkpoint.
    """
    if window == "swad":
        assert losses is not None
        low, high = _valley(losses, swad)
    elif found := _LAST.fullmatch(window):
        if not 1 <= int(found[1]) <= len(steps_K):
            raise RecipeError(f"window is {window}, but there are {len(steps_K)} checkpoints")
        return range(len(steps_K) - int(found[1]), len(steps_K))
    else:
        low, high = _ends(window, Units(float(steps_K[-1]), tokens_per_step))
    slack = 1e-9 * steps_K[-1]  # a share of the steps is seldom a number of them
    rows = np.flatnonzero((steps_K >= low - slack) & (steps_K <= high + slack))
    if not rows.size:
        raise RecipeError(
            f"window {window} holds no checkpoint",
            hint=f"they are at the steps {steps_K[0]:g} to {steps_K[-1]:g}",
        )
    return range(int(rows[0]), int(rows[-1]) + 1)


def _ends(window: str, units: Units) -> tuple[float, float]:
    low, dots, high = window.partition("..")
    if not dots:
        raise RecipeError(
            f"window is {brief(window)}, expected FIRST..LAST, lastN or swad",
            hint="for example 40k..880k, 50%.., or last10",
        )
    ends = (units.steps(low) if low else -np.inf, units.steps(high) if high else np.inf)
    if ends[0] > ends[1]:
        raise RecipeError(f"window {window} ends before it begins")
    return ends


def _valley(losses: Pairs, swad: Sequence[float]) -> tuple[float, float]:
    steps, values = losses
    found = valley(values.tolist(), patience=int(swad[0]), overfits=int(swad[1]), tolerance=swad[2])
    return float(steps[found[0]]), float(steps[found[-1]])


def read_losses(path: Path) -> Pairs:
    """Steps and validation losses, of lines `step loss`, or of `eval_loss` in a trainer_state.json."""
    text = _read(path)
    if path.suffix != ".json":
        steps, values = _columns(text, path, "step loss")
    else:
        try:
            rows = [row for row in json.loads(text)["log_history"] if "eval_loss" in row]
            steps, values = (np.array([float(row[key]) for row in rows]) for key in ("step", "eval_loss"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecipeError(f"{path}: has no log_history with eval_loss: {error!r}") from error
    if not steps.size or not (np.diff(steps) > 0).all() or not np.isfinite(values).all():
        raise RecipeError(f"{path}: expected finite losses at ascending steps")
    return steps, values


def read_curve(path: Path) -> Integral:
    """A decay of lines `share-of-the-window learning-rate`, with straight lines between them."""
    at_P, values_P = _columns(_read(path), path, "share learning-rate")
    inside = len(at_P) > 1 and at_P[0] == 0 and at_P[-1] == 1 and (np.diff(at_P) > 0).all()
    if not inside or not np.isfinite(values_P).all():
        raise RecipeError(
            f"{path}: expected ascending shares of the window, the first 0 and the last 1",
            hint="for example two lines: `0 1` and `1 0`, which is the linear decay",
        )
    return curve(at_P, values_P)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}", hint="check the path") from error


def _columns(text: str, path: Path, what: str) -> Pairs:
    """Two numbers a line, between them spaces or a comma; what follows # is a remark."""
    rows = [line.partition("#")[0].replace(",", " ").split() for line in text.splitlines()]
    try:
        numbers = [[float(each) for each in row] for row in rows if row]
        if not numbers or any(len(row) != 2 for row in numbers):
            raise ValueError
    except ValueError:
        raise RecipeError(f"{path}: expected lines of two numbers, `{what}`") from None
    first, second = np.array(numbers).T
    return first, second
