"""Recipe of `soupkit merge sce`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import BaseOptions


@dataclass(frozen=True, kw_only=True)
class MergeSce(BaseOptions):
    """Select what varies most between task vectors, weigh by energy, erase minority signs.

    Example: soupkit merge sce a b c --base base --density 0.1 --out soups/sce
    """

    FAMILY = "sce"

    density: float = option(
        1.0,
        help="fraction of the entries to keep, by variance over the checkpoints",
        low=0,
        high=1,
        above=True,
    )
    normalize: bool = option(
        True, help="average the entries that agree, by weight; without it they are added"
    )
