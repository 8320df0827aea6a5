"""Recipe of `soupkit merge tall-mask`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import BaseOptions, task_option


@dataclass(frozen=True, kw_only=True)
class MergeTallMask(BaseOptions):
    """Recover one task out of the sum of all by its TALL mask.

    Example: soupkit merge tall-mask a b c --base base --task 0 --out soups/task-0
    """

    FAMILY = "task_arithmetic"
    INPUTS = (2, None)

    task: int = task_option()
    threshold: float = option(
        0.4, help="a task needs an entry when its own is this many times the others' sum", low=0
    )
