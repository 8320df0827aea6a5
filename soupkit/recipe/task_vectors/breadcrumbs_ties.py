"""Recipe of `soupkit merge breadcrumbs-ties`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import ElectionOptions, density_option, gamma_option


@dataclass(frozen=True, kw_only=True)
class MergeBreadcrumbsTies(ElectionOptions):
    """Drop the largest and the smallest entries of task vectors, elect signs, combine what agrees.

    Example: soupkit merge breadcrumbs-ties a b --base base --density 0.9 --gamma 0.01 --out
    soups/breadcrumbs-ties
    """

    FAMILY = "breadcrumbs"

    density: tuple[float, ...] = density_option(0.9)
    gamma: tuple[float, ...] = gamma_option()
