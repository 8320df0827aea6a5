"""Recipe of `soupkit merge fusion`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import MethodRecipe


@dataclass(frozen=True, kw_only=True)
class MergeFusion(MethodRecipe):
    """Take the important differences of B into A, importance by change and divergence (Arcee Fusion).

    Example: soupkit merge fusion a b --out soups/fusion
    """

    FAMILY = "between"
    INPUTS = (2, 2)
    PIECES = "row"

    fence: float = option(1.5, help="important is what lies above median + fence · interquartile range")
