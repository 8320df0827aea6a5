"""Recipe of `soupkit merge regmean`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergeRegmean(MethodRecipe):
    """Combine linear layers so that their outputs on each model's own inputs change least (RegMean).

    Example: soupkit merge regmean a b --statistics a-grams.safetensors --statistics b-grams.safetensors --out
    soups/r
    """

    FAMILY = "statistics"
    PIECES = "tensor"

    statistics: tuple[str, ...] = option(
        help="per checkpoint, XᵀX of the inputs of linear layers, under the names of their weights; "
        "repeat in order"
    )
    weight: tuple[float, ...] = option((1.0,), help="one weight, or one per checkpoint", low=0, divides=True)
    shrink: float = option(0.9, help="factor of the off-diagonal entries of XᵀX", low=0, high=1)
