"""Do checkpoints agree? Asked with what a recipe says of differences, and told to whoever listens."""

from __future__ import annotations

from collections.abc import Sequence

from soupkit.asked import Compares
from soupkit.checkpoint.compatible import Agreement, Ingredient, check_compatible
from soupkit.checkpoint.config.meaning import check_meaning
from soupkit.checkpoint.source import Source
from soupkit.events import Report, Warned


def agreed(ingredients: Sequence[Ingredient], recipe: Compares, report: Report) -> Agreement:
    """`check_compatible` under --mismatch, for commands that write no soup of them; what differs is
    reported."""
    agreement = check_compatible(ingredients, mismatch=recipe.mismatch)
    warn_of(agreement, report)
    return agreement


def check_alike(checkpoints: Sequence[Source], recipe: Compares, report: Report) -> None:
    """Compare what checkpoints say they are, for commands that run them one by one as the first: outputs are
    averaged.

    Raises CompatibilityError as `soupkit.checkpoint.config.meaning.check_meaning` does.
    """
    known = [checkpoint for checkpoint in checkpoints if checkpoint.config]
    names = [checkpoint.reference for checkpoint in known]
    if len(known) > 1:
        for remark in check_meaning(
            [checkpoint.config for checkpoint in known], names, mismatch=recipe.mismatch
        ):
            report(Warned(remark))


def warn_of(agreement: Agreement, report: Report) -> None:
    """Report what the configurations of checkpoints say differently."""
    for remark in agreement.remarks:
        report(Warned(remark))
