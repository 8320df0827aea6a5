"""Recipe of `soupkit merge ties`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import ElectionOptions, density_option


@dataclass(frozen=True, kw_only=True)
class MergeTies(ElectionOptions):
    """Trim task vectors to their largest entries, elect signs, average what agrees.

    Example: soupkit merge ties a b c --base base --density 0.2 --out soups/ties
    """

    FAMILY = "ties"

    density: tuple[float, ...] = density_option(0.2)
