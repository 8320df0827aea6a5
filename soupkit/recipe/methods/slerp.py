"""Recipe of `soupkit merge slerp`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergeSlerp(MethodRecipe):
    """Interpolate two checkpoints on the sphere: from A (t = 0) to B (t = 1).

    Example: soupkit merge slerp a b --t 0.3 --out soups/slerp
    """

    FAMILY = "spherical"
    INPUTS = (2, 2)

    t: float = option(0.5, help="0 is the first checkpoint, 1 the second")
    rows: bool = option(False, help="rotate every row (output unit) by itself, instead of every tensor")
