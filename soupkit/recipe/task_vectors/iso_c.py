"""Recipe of `soupkit merge iso-c`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import SpectralOptions


@dataclass(frozen=True, kw_only=True)
class MergeIsoC(SpectralOptions):
    """Add task matrices and make all singular values of the sum equal (isotropic merging).

    Example: soupkit merge iso-c a b c --base base --out soups/iso-c
    """
