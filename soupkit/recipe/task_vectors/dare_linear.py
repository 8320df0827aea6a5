"""Recipe of `soupkit merge dare-linear`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import RandomOptions, SumOptions


@dataclass(frozen=True, kw_only=True)
class MergeDareLinear(RandomOptions, SumOptions):
    """Drop entries of task vectors at random, rescale the rest, add them up.

    Example: soupkit merge dare-linear a b --base base --density 0.5 --weight 0.5 --seed 1 --out soups/dare
    """

    FAMILY = "dare"

    density: tuple[float, ...] = option(
        (0.5,), help="fraction of the entries to keep, one or one per checkpoint", low=0, high=1, above=True
    )
