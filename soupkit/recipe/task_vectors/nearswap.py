"""Recipe of `soupkit merge nearswap`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import BaseOptions


@dataclass(frozen=True, kw_only=True)
class MergeNearswap(BaseOptions):
    """Move a base towards another checkpoint, each entry by at most t.

    Example: soupkit merge nearswap b --base a --t 0.001 --out soups/nearswap
    """

    FAMILY = "between"
    INPUTS = (1, 1)

    t: float = option(help="the longest step of an entry, in units of the weights", low=0)
