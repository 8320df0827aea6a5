"""Recipe of `soupkit merge model-stock`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import BaseOptions


@dataclass(frozen=True, kw_only=True)
class MergeModelStock(BaseOptions):
    """Go from a base towards the average as far as the angles between the fine-tuned checkpoints say.

    Example: soupkit merge model-stock a b --base base --out soups/stock
    """

    FAMILY = "model_stock"
    INPUTS = (2, None)

    rows: bool = option(False, help="by filter (output unit) instead of by tensor")
