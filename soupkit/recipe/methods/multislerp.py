"""Recipe of `soupkit merge multislerp`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergeMultislerp(MethodRecipe):
    """Average the directions of checkpoints, or of task vectors, and their lengths.

    Example: soupkit merge multislerp a b c --weight 0.5,0.3,0.2 --out soups/multislerp
    """

    FAMILY = "spherical"

    base: str | None = option(None, help="average the differences from this checkpoint")
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint", divides=True)
