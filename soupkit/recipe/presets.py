"""Published rules for options per tensor, by name: `--preset lines:0.3,0.7`."""

from __future__ import annotations

import math

from soupkit.errors import RecipeError


def settings_of(preset: str | None) -> tuple[str, ...]:
    """The `--set` texts that a preset stands for.

    lines:ALPHA,BETA: λ_ℓ = α + β (ℓ − 1) / (L − 1) for layer ℓ of L, α outside the layers: shallow layers,
    which tasks share, move least (Wang et al. 2025, LiNeS, arXiv:2410.17146, eq. 4). Raises RecipeError for
    another name or other numbers.
    """
    if preset is None:
        return ()
    name, _, numbers = preset.partition(":")
    try:
        alpha, beta = map(float, numbers.split(","))
    except ValueError:
        alpha = beta = math.nan
    if name != "lines" or not math.isfinite(alpha + beta):
        raise RecipeError(
            f"preset is {preset!r}, expected lines:ALPHA,BETA",
            hint="--preset lines:0.3,0.7 lets lambda grow from 0.3 in the first layer to 1 in the last",
        )
    return (f"*: {{lambda: [{alpha!r}, {alpha + beta!r}]}}",)
