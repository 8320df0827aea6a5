"""Recipe of `soupkit merge dare-ties`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import ElectionOptions, RandomOptions


@dataclass(frozen=True, kw_only=True)
class MergeDareTies(RandomOptions, ElectionOptions):
    """Drop entries of task vectors at random, rescale the rest, elect signs, combine what agrees.

    Example: soupkit merge dare-ties a b --base base --density 0.5 --seed 1 --out soups/dare-ties
    """

    FAMILY = "dare"

    density: tuple[float, ...] = option(
        (0.5,), help="fraction of the entries to keep, one or one per checkpoint", low=0, high=1, above=True
    )
