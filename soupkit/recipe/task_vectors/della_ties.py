"""Recipe of `soupkit merge della-ties`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import ElectionOptions, RandomOptions, density_option, epsilon_option


@dataclass(frozen=True, kw_only=True)
class MergeDellaTies(RandomOptions, ElectionOptions):
    """Drop small entries of task vectors more often than large ones, rescale, elect signs, combine what
    agrees.

    Example: soupkit merge della-ties a b --base base --density 0.5 --epsilon 0.2 --out soups/della-ties
    """

    FAMILY = "della"
    PIECES = "row"

    density: tuple[float, ...] = density_option(0.5)
    epsilon: tuple[float, ...] = epsilon_option()
