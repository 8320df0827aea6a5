"""Do checkpoints agree? Asked with what a recipe says of differences, and told to whoever listens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from soupkit.checkpoint.compatible import Agreement, Ingredient, check_compatible
from soupkit.events import Report, Warned


def agreed(ingredients: Sequence[Ingredient], recipe: Any, report: Report) -> Agreement:
    """`check_compatible` under --mismatch, for commands that write no soup of them; what differs is reported."""
    agreement = check_compatible(ingredients, mismatch=recipe.mismatch)
    warn_of(agreement, report)
    return agreement


def warn_of(agreement: Agreement, report: Report) -> None:
    """Report what the configurations of checkpoints say differently."""
    for remark in agreement.remarks:
        report(Warned(remark))
