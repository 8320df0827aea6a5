"""Shapes over windows of a training: which checkpoints each takes, and with which coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soupkit.errors import RecipeError
from soupkit.events import Table
from soupkit.jsons import Json
from soupkit.merge import trajectory, windows
from soupkit.merge.running import Bema
from soupkit.merge.trajectory import Vector
from soupkit.recipe.averages import SHAPES, MergeTrajectory
from soupkit.recipe.parse import suggestion
from soupkit.stages.inputs.trajectory import Member, shown

MOST_SHOWN = 24
"""Rows of the table of coefficients: more are in soupkit.json."""


@dataclass(frozen=True)
class Candidate:
    """One shape over one window: `rows` of the members with their coefficients, which sum to one."""

    window: str
    shape: str
    rows: range
    values: Vector
    steps: Vector

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.shape}-{shown(self.steps[0])}-{shown(self.steps[-1])}"

    def to_json(self) -> Json:
        """What a manifest notes of it."""
        coefficients = self.values.tolist()
        return {
            "window": self.window,
            "shape": self.shape,
            "steps": self.steps.tolist(),
            "coefficients": coefficients,
        }


def plan_candidates(recipe: MergeTrajectory, members: Sequence[Member]) -> list[Candidate]:
    """Every shape over every window. Raises RecipeError for one that cannot be, or that is another again."""
    steps_K = np.array([member.step for member in members])
    losses = windows.read_losses(recipe.losses) if recipe.losses else None
    found: dict[str, Candidate] = {}
    for window in recipe.window:
        rows = windows.rows_of(
            window, steps_K, tokens_per_step=recipe.tokens_per_step, losses=losses, swad=recipe.swad
        )
        for shape in recipe.shape:
            label, values = _values(shape, steps_K[rows], recipe)
            each = Candidate(window, label, rows, values, steps_K[rows])
            if each.name in found:
                twice = f"windows {found[each.name].window} and {window}"
                raise RecipeError(
                    f"{twice} give the same checkpoints for {label}", hint="leave one of them out"
                )
            found[each.name] = each
    return list(found.values())


def _values(shape: str, steps_K: Vector, recipe: MergeTrajectory) -> tuple[str, Vector]:
    """What a shape is called, and its coefficients."""
    if shape == "uniform":
        return shape, np.full(len(steps_K), 1 / len(steps_K))
    if shape == "ema":
        units = windows.Units(float(steps_K[-1] - steps_K[0]), recipe.tokens_per_step)
        half_life = windows.half_life(recipe.half_life or "", units)
        return shape, trajectory.ema(steps_K, half_life, debias=recipe.debias)
    if shape == "bema":
        return shape, trajectory.bema(steps_K, Bema(recipe.bema[0], recipe.bema[1], recipe.bema[2]))
    known = {
        "linear": trajectory.linear,
        "cosine": trajectory.cosine,
        "minus-sqrt": trajectory.power(0.5),
        "power": trajectory.power(recipe.power or 1.0),
    }
    if shape in known:
        return shape, trajectory.decayed(known[shape], steps_K)
    path = Path(shape).expanduser()
    if not path.is_file():
        raise RecipeError(f"shape {shape} is neither known nor a file", hint=suggestion(shape, SHAPES))
    return path.stem, trajectory.decayed(windows.read_curve(path), steps_K)


def coefficients_table(candidates: Sequence[Candidate], members: Sequence[Member]) -> Table:
    """Members, steps and the coefficient that each candidate gives them."""
    columns = ("checkpoint", "step", *(f"{each.shape} {each.window}" for each in candidates))
    rows = []
    for row, member in enumerate(members):
        cells = [f"{each.values[row - each.rows[0]]:.6g}" if row in each.rows else "" for each in candidates]
        rows.append((member.checkpoint.reference, shown(member.step), *cells))
    middle = len(rows) - MOST_SHOWN
    caption = f"{middle} more checkpoints between them" if middle > 0 else ""
    if middle > 0:
        rows = [*rows[: MOST_SHOWN // 2], *rows[-MOST_SHOWN // 2 :]]
    return Table("coefficients", columns, tuple(rows), caption)
