"""Recipe of `soupkit merge knots-ties`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import ElectionOptions, SpectralOptions, density_option


@dataclass(frozen=True, kw_only=True)
class MergeKnotsTies(SpectralOptions, ElectionOptions):
    """TIES in the basis that all task matrices share (KnOTS), as adapters want it.

    Example: soupkit merge knots-ties base+a base+b --base base --density 0.2 --out soups/knots
    """

    density: tuple[float, ...] = density_option(0.2)
