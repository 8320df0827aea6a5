"""What `--dry-run` tells of a merge by a method: bytes, memory, disk, and the time it should take."""

from __future__ import annotations

from typing import Any

from soupkit.events import Report
from soupkit.jobs.methods import MethodMerge
from soupkit.jobs.soup import show_plan
from soupkit.world import World


def show_method_plan(merge: MethodMerge, recipe: Any, world: World, report: Report) -> dict[str, Any]:
    """Everything is checked by now, and nothing is written."""
    return show_plan(merge.ingredients, recipe, world, report)
