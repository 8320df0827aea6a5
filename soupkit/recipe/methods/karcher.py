"""Recipe of `soupkit merge karcher`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergeKarcher(MethodRecipe):
    """Average checkpoints, or task vectors, on the sphere: the Karcher mean of their directions.

    Example: soupkit merge karcher a b c --out soups/karcher
    """

    FAMILY = "spherical"

    base: str | None = option(None, help="average the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint", low=0, divides=True)
    iterations: int = option(50, help="most steps of the fixed-point iteration", low=1)
    tolerance: float = option(1e-9, help="stop when a step is shorter than this many radians", low=0)
