"""Recipe of `soupkit merge dare-linear`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import RandomOptions, SumOptions, density_option


@dataclass(frozen=True, kw_only=True)
class MergeDareLinear(RandomOptions, SumOptions):
    """Drop entries of task vectors at random, rescale the rest, add them up.

    Example: soupkit merge dare-linear a b --base base --density 0.5 --weight 0.5 --seed 1 --out soups/dare
    """

    FAMILY = "dare"

    density: tuple[float, ...] = density_option(0.5)
