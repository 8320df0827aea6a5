"""Recipe of `soupkit merge ties`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import ElectionOptions


@dataclass(frozen=True, kw_only=True)
class MergeTies(ElectionOptions):
    """Trim task vectors to their largest entries, elect signs, average what agrees.

    Example: soupkit merge ties a b c --base base --density 0.2 --out soups/ties
    """

    FAMILY = "ties"

    density: tuple[float, ...] = option(
        (0.2,), help="fraction of the entries to keep, one or one per checkpoint", low=0, high=1, above=True
    )
