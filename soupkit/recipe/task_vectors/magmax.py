"""Recipe of `soupkit merge magmax`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import BaseOptions


@dataclass(frozen=True, kw_only=True)
class MergeMagmax(BaseOptions):
    """Take every entry from the task that changed it most.

    Example: soupkit merge magmax a b c --base base --lambda 0.5 --out soups/magmax
    """

    FAMILY = "ownership"
