"""Recipe of `soupkit merge task-arithmetic`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import SumOptions


@dataclass(frozen=True, kw_only=True)
class MergeTaskArithmetic(SumOptions):
    """Add weighted task vectors to a base.

    Example: soupkit merge task-arithmetic a b --base base --weight 0.4 --out soups/tasks
    """

    FAMILY = "task_arithmetic"
