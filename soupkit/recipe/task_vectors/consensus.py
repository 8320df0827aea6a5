"""Recipe of `soupkit merge consensus`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import SumOptions


@dataclass(frozen=True, kw_only=True)
class MergeConsensus(SumOptions):
    """Add weighted task vectors where several tasks need the entry (consensus task arithmetic).

    Example: soupkit merge consensus a b c --base base --weight 0.3 --out soups/consensus
    """

    FAMILY = "task_arithmetic"

    threshold: float = option(
        0.4, help="a task needs an entry when its own is this many times the others' sum", low=0
    )
    agree: int = option(2, help="how many tasks must need an entry", low=1)
