"""Recipe of `soupkit merge wudi`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import SpectralOptions


@dataclass(frozen=True, kw_only=True)
class MergeWudi(SpectralOptions):
    """Move the sum of task matrices to where it disturbs each task least (WUDI), without data.

    Example: soupkit merge wudi a b c --base base --out soups/wudi
    """

    FAMILY = "wudi"

    iterations: int = option(300, help="steps of Adam", low=0)
    lr: float = option(1e-5, help="its learning rate: about the most that an entry moves in a step", low=0)
