"""Recipe of `soupkit merge fisher`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergeFisher(MethodRecipe):
    """Average checkpoints entry by entry, weighted by their Fisher information.

    Example: soupkit merge fisher a b --statistics a-fisher.safetensors --statistics b-fisher.safetensors
    --out soups/f
    """

    FAMILY = "statistics"

    statistics: tuple[str, ...] = option(
        help="per checkpoint, the diagonal Fisher information: same names and shapes; repeat in the "
        "same order"
    )
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint", low=0, divides=True)
    floor: float = option(1e-6, help="least Fisher information of an entry", low=0, above=True)
