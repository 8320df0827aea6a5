"""Recipe of `soupkit merge emr`."""

from __future__ import annotations

from dataclasses import dataclass

from soupkit.recipe.fields import option
from soupkit.recipe.method_options import BaseOptions


@dataclass(frozen=True, kw_only=True)
class MergeEmr(BaseOptions):
    """Recover one task out of one vector for all by its signs and its size (elect, mask, rescale).

    Example: soupkit merge emr a b c --base base --task 0 --out soups/task-0
    """

    FAMILY = "ownership"
    INPUTS = (2, None)

    task: int = option(help="position of the checkpoint to recover, from 0", low=0)
