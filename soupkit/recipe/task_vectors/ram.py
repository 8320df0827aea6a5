"""Recipe of `soupkit merge ram`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import ChangeOptions


@dataclass(frozen=True, kw_only=True)
class MergeRam(ChangeOptions):
    """Average what several tasks changed, keep what one alone changed (reinforced agent merging).

    Example: soupkit merge ram a b c --base base --out soups/ram
    """
