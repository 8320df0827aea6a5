"""Recipe of `soupkit merge della-linear`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import RandomOptions, SumOptions, density_option, epsilon_option


@dataclass(frozen=True, kw_only=True)
class MergeDellaLinear(RandomOptions, SumOptions):
    """Drop small entries of task vectors more often than large ones, rescale the rest, add them up.

    Example: soupkit merge della-linear a b --base base --density 0.5 --epsilon 0.2 --out soups/della
    """

    FAMILY = "della"
    PIECES = "row"

    density: tuple[float, ...] = density_option(0.5)
    epsilon: tuple[float, ...] = epsilon_option()
