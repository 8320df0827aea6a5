"""Recipe of `soupkit merge breadcrumbs`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import SumOptions, density_option, gamma_option


@dataclass(frozen=True, kw_only=True)
class MergeBreadcrumbs(SumOptions):
    """Drop the largest and the smallest entries of task vectors, add up the rest.

    Example: soupkit merge breadcrumbs a b --base base --density 0.9 --gamma 0.01 --out soups/breadcrumbs
    """

    FAMILY = "breadcrumbs"

    density: tuple[float, ...] = density_option(0.9)
    gamma: tuple[float, ...] = gamma_option()
