"""Recipe of `soupkit merge breadcrumbs-ties`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import ElectionOptions


@dataclass(frozen=True, kw_only=True)
class MergeBreadcrumbsTies(ElectionOptions):
    """Drop the largest and the smallest entries of task vectors, elect signs, combine what agrees.

    Example: soupkit merge breadcrumbs-ties a b --base base --density 0.9 --gamma 0.01 --out soups/breadcrumbs-ties
    """

    FAMILY = "breadcrumbs"

    density: tuple[float, ...] = option(
        (0.9,), help="fraction of the entries to keep, one or one per checkpoint", low=0, high=1, above=True
    )
    gamma: tuple[float, ...] = option((0.01,), help="fraction of the largest entries to drop", low=0, high=1)
