"""Recipe of `soupkit merge linear`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergeLinear(MethodRecipe):
    """Average checkpoints by weights, as `merge weighted` does, LoRA adapters and ranges of layers among
    them.

    Example: soupkit merge linear a b+adapter --weight 0.7,0.3 --out soups/linear
    """

    FAMILY = "task_arithmetic"

    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint")
    normalize: bool = option(True, help="divide by the sum of the weights")
