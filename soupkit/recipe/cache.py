"""Recipe of `soupkit cache`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from soupkit.errors import RecipeError
from soupkit.recipe.fields import option


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Show what is remembered from earlier runs, and how much room that takes; --clear forgets it.

    Scores, predictions and points are remembered under the content of all that they depend on. Nothing else
    is touched.

    Example: soupkit cache --clear --kind predictions
    """

    clear: bool = option(False, help="remove what is remembered")
    kind: Literal["all", "scores", "points", "predictions"] = option("all", help="of which kind")
    dry_run: bool = option(False, help="with --clear, only say what would be removed")

    def __post_init__(self) -> None:
        if self.dry_run and not self.clear:
            raise RecipeError("dry_run has no meaning without clear", hint="soupkit cache --clear --dry-run")
