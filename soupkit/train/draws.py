"""Hyper-parameters of a sweep: `log(1e-5,1e-3)` and its kin, drawn at random, quasi-randomly or from a grid.

Run i is drawn from (seed, i) alone, so a sweep can grow: the first runs of a longer sweep are those of the shorter one.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Literal

import numpy as np

from soupkit.errors import RecipeError
from soupkit.recipe.train import FinetuneSweep

Value = int | float | None
Settings = dict[str, Value]

KINDS = ("log", "uniform", "int", "choice")
WHOLE = ("epochs", "rand_augment", "rand_augment_magnitude", "run_seed")
OPTIONAL = ("layer_decay", "run_seed")
DRAWN = (
    "lr",
    "weight_decay",
    "epochs",
    "mixup",
    "cutmix",
    "label_smoothing",
    "random_erasing",
    "rand_augment",
    "rand_augment_magnitude",
    "layer_decay",
    "run_seed",
)
HYPER_PARAMETERS = (*DRAWN[:-1], "seed")
"""The same under the names of `soupkit finetune`."""
FORMS = "a number, log(a,b), uniform(a,b), int(a,b) or choice(a,b,…)"


@dataclass(frozen=True)
class Draw:
    """What one hyper-parameter may be: two bounds of a range (log, uniform, int: both included) or a list of points."""

    kind: Literal["constant", "log", "uniform", "int", "choice"]
    values: tuple[Value, ...]

    def at(self, u: float) -> Value:
        """The value at u in [0, 1): the inverse of the distribution function."""
        if self.kind in ("constant", "choice"):
            return self.values[int(u * len(self.values))]
        low, high = (float(value) for value in self.values if value is not None)
        if self.kind == "int":
            return int(low) + int(u * (int(high) - int(low) + 1))
        if self.kind == "uniform":
            return min(low + u * (high - low), high)
        return min(max(math.exp(math.log(low) + u * (math.log(high) - math.log(low))), low), high)


def parse_draw(text: str, name: str) -> Draw:
    """Read the option `name`. Raises RecipeError for what is no number or range, and for an empty or infinite range."""
    call = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text, re.DOTALL)
    if call is None:
        return Draw("constant", (_value(text, name, text),))
    kind, arguments = call.group(1), call.group(2).split(",")
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        raise _wrong(name, text, f"{kind} is no range" + (f"; did you mean {close[0]}?" if close else ""))
    values = tuple(_value(argument, name, text) for argument in arguments)
    if kind == "choice":
        return Draw("choice", values)
    return Draw(_checked_range(kind, values, name, text), values)


def draw_settings(recipe: FinetuneSweep) -> list[Settings]:
    """The hyper-parameters of every run of a sweep, under the names that `soupkit finetune` gives them.

    random: numpy's PCG64 seeded by (seed, run). sobol: scrambled Sobol points (Owen 1998; scipy.stats.qmc), a
    coordinate per option that varies. grid: the Cartesian product of the points, the last option fastest, cut off at
    num_runs.
    Raises RecipeError for a malformed option, and for a range where a grid needs points.
    """
    draws = {name: parse_draw(str(getattr(recipe, name)), name) for name in DRAWN}
    if recipe.seed < 0:
        raise RecipeError(f"seed is {recipe.seed}, expected 0 or more")
    chosen = _grid(draws, recipe.num_runs) if recipe.draw == "grid" else _drawn(draws, recipe)
    return [_with_seed(settings, recipe.seed + run) for run, settings in enumerate(chosen)]


def grid_size(recipe: FinetuneSweep) -> int:
    """The number of points of the whole grid."""
    return math.prod(len(parse_draw(str(getattr(recipe, name)), name).values) for name in DRAWN)


def varying(settings: list[Settings]) -> list[str]:
    """The hyper-parameters that differ between runs, the seed left out: what a table of the sweep shows."""
    return (
        [name for name in settings[0] if name != "seed" and len({each[name] for each in settings}) > 1]
        if settings
        else []
    )


def _value(text: str, name: str, where: str) -> Value:
    text = text.strip()
    if text == "none":
        if name not in OPTIONAL:
            raise _wrong(name, where, "none is not a value of this option")
        return None
    try:
        number = float(text)
    except ValueError:
        raise _wrong(name, where, f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise _wrong(name, where, f"{text} is not finite")
    if name not in WHOLE:
        return number
    if number != int(number):
        raise _wrong(name, where, f"{text} is not a whole number")
    return int(number)


def _checked_range(kind: str, values: tuple[Value, ...], name: str, text: str) -> Literal["log", "uniform", "int"]:
    if len(values) != 2 or values[0] is None or values[1] is None:
        raise _wrong(name, text, f"{kind} takes two bounds, from,to")
    low, high = values[0], values[1]
    if low >= high:
        raise _wrong(name, text, "the lower bound comes first")
    if kind == "log" and low <= 0:
        raise _wrong(name, text, "log needs bounds above 0")
    if kind == "int" and (low != int(low) or high != int(high)):
        raise _wrong(name, text, "int needs whole bounds")
    if kind != "int" and name in WHOLE:
        raise RecipeError(
            f"{name} is {text!r}, but it is a whole number", hint=f"--{_dashed(name)} 'int({low},{high})'"
        )
    return "log" if kind == "log" else "uniform" if kind == "uniform" else "int"


def _drawn(draws: Mapping[str, Draw], recipe: FinetuneSweep) -> list[Settings]:
    if recipe.num_runs < 1:
        raise RecipeError(f"num_runs is {recipe.num_runs}, expected at least 1 with --draw {recipe.draw}")
    names = [name for name, draw in draws.items() if draw.kind != "constant"]
    points = (_sobol if recipe.draw == "sobol" else _random)(recipe.seed, recipe.num_runs, len(names))
    constants = {name: draw.values[0] for name, draw in draws.items()}
    return [
        constants | {name: draws[name].at(float(u)) for name, u in zip(names, point, strict=True)} for point in points
    ]


def _random(seed: int, num_runs: int, num_options: int) -> np.ndarray:
    """Points [num_runs × num_options] in [0, 1); row i depends on (seed, i) alone."""
    return np.stack([np.random.default_rng([seed, run]).random(num_options) for run in range(num_runs)])


def _sobol(seed: int, num_runs: int, num_options: int) -> np.ndarray:
    """The first rows of a scrambled Sobol sequence; it is drawn to the next power of two, where it is balanced."""
    from scipy.stats import qmc

    if num_options == 0:
        return np.zeros((num_runs, 0))
    generator = qmc.Sobol(num_options, scramble=True, seed=np.random.default_rng(seed))
    points: np.ndarray = generator.random_base2(math.ceil(math.log2(num_runs)))
    return points[:num_runs]


def _grid(draws: Mapping[str, Draw], num_runs: int) -> list[Settings]:
    for name, draw in draws.items():
        if draw.kind not in ("constant", "choice"):
            low, high = draw.values
            raise RecipeError(
                f"{name} is a range, {draw.kind}({low:g},{high:g}), but a grid needs points",
                hint=f"--{_dashed(name)} 'choice({low:g},{high:g})', or --draw random",
            )
    if num_runs < 0:
        raise RecipeError(f"num_runs is {num_runs}, expected 0 (the whole grid) or more")
    points = product(*(draw.values for draw in draws.values()))
    return [dict(zip(draws, point, strict=True)) for point in islice(points, num_runs or None)]


def _with_seed(settings: Settings, seed: int) -> Settings:
    drawn = settings.pop("run_seed")
    return settings | {"seed": seed if drawn is None else drawn}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _wrong(name: str, text: str, problem: str) -> RecipeError:
    return RecipeError(f"{name} is {text!r}: {problem}", hint=f"--{_dashed(name)} takes {FORMS}")
