"""Recipe of `soupkit merge ram-plus`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import ChangeOptions


@dataclass(frozen=True, kw_only=True)
class MergeRamPlus(ChangeOptions):
    """RAM, with what a task alone changed enlarged by how much of the rest it shares.

    Example: soupkit merge ram-plus a b c --base base --out soups/ram-plus
    """

    gain: float = option(0.1, help="how much the shared part enlarges the own one (the paper's r)", low=0)
    clip: float = option(0.2, help="most that shared / own counts (the paper's α)", low=0)
