"""Recipe of `soupkit merge nuslerp`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergeNuslerp(MethodRecipe):
    """Interpolate two checkpoints, or their task vectors, on the sphere by weights.

    Example: soupkit merge nuslerp a b --weight 0.7,0.3 --base base --out soups/nuslerp
    """

    FAMILY = "spherical"
    INPUTS = (2, 2)

    base: str | None = option(None, help="interpolate the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="two weights; t is the second's share", divides=True)
    rows: bool = option(False, help="rotate every row (output unit) by itself, instead of every tensor")
