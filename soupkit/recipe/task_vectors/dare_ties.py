"""Recipe of `soupkit merge dare-ties`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import ElectionOptions, RandomOptions, density_option


@dataclass(frozen=True, kw_only=True)
class MergeDareTies(RandomOptions, ElectionOptions):
    """Drop entries of task vectors at random, rescale the rest, elect signs, combine what agrees.

    Example: soupkit merge dare-ties a b --base base --density 0.5 --seed 1 --out soups/dare-ties
    """

    FAMILY = "dare"

    density: tuple[float, ...] = density_option(0.5)
