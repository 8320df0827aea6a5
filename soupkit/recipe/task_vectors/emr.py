"""Recipe of `soupkit merge emr`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.method_options import BaseOptions, task_option


@dataclass(frozen=True, kw_only=True)
class MergeEmr(BaseOptions):
    """Recover one task out of one vector for all by its signs and its size (elect, mask, rescale).

    Example: soupkit merge emr a b c --base base --task 0 --out soups/task-0
    """

    FAMILY = "ownership"
    INPUTS = (2, None)

    task: int = task_option()
