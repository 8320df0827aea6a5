"""Recipe of `soupkit merge iso-cts`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import SpectralOptions


@dataclass(frozen=True, kw_only=True)
class MergeIsoCts(SpectralOptions):
    """Isotropic merging in the directions that tasks share and in some that each has alone.

    Example: soupkit merge iso-cts a b c --base base --common 0.8 --out soups/iso-cts
    """

    common: float = option(0.8, help="share of the singular vectors that is common to all", low=0, high=1)
