"""Recipe of `soupkit merge tsv-m`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import SpectralOptions


@dataclass(frozen=True, kw_only=True)
class MergeTsvM(SpectralOptions):
    """Join the largest singular vectors of every task matrix, made orthogonal (task singular vectors).

    Example: soupkit merge tsv-m a b c --base base --out soups/tsv
    """
