"""The table of commands: name → recipe → job.

Both are strings, so that `soupkit --help` imports neither numpy nor torch. A job is
`job(recipe, world, report) → dict`: what `--json` prints, and what a manifest holds where the command writes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soupkit.events import Report
    from soupkit.world import World

Job = Callable[[Any, "World", "Report"], dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """One command: where its recipe type and its job live."""

    recipe: str
    job: str

    def recipe_type(self) -> type[Any]:
        """Import the recipe dataclass (cheap: no numpy, no torch)."""
        kind: type[Any] = _load(self.recipe)
        return kind

    def load_job(self) -> Job:
        """Import the job and what it needs."""
        job: Job = _load(self.job)
        return job


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)


COMMANDS: dict[str, Command] = {
    "demo": Command("soupkit.recipe.run:Demo", "soupkit.jobs.demo:demo"),
    "run": Command("soupkit.recipe.run:Run", "soupkit.jobs.run:run"),
    "merge uniform": Command("soupkit.recipe.merge:MergeUniform", "soupkit.jobs.merge:merge_uniform"),
    "merge weighted": Command("soupkit.recipe.merge:MergeWeighted", "soupkit.jobs.merge:merge_weighted"),
    "merge interpolate": Command("soupkit.recipe.merge:MergeInterpolate", "soupkit.jobs.interpolate:merge_interpolate"),
    "merge greedy": Command("soupkit.recipe.merge:MergeGreedy", "soupkit.jobs.greedy:merge_greedy"),
    "evaluate": Command("soupkit.recipe.evaluate:Evaluate", "soupkit.jobs.evaluate:evaluate"),
    "finetune": Command("soupkit.recipe.train:Finetune", "soupkit.jobs.finetune:finetune"),
    "finetune-sweep": Command("soupkit.recipe.train:FinetuneSweep", "soupkit.jobs.sweep:finetune_sweep"),
    "convert": Command("soupkit.recipe.hub:Convert", "soupkit.jobs.convert:convert"),
    "inspect": Command("soupkit.recipe.inspect:Inspect", "soupkit.jobs.inspect:inspect"),
    "diff": Command("soupkit.recipe.inspect:Diff", "soupkit.jobs.inspect:diff"),
    "verify": Command("soupkit.recipe.inspect:Verify", "soupkit.jobs.verify:verify"),
    "reproduce": Command("soupkit.recipe.inspect:Reproduce", "soupkit.jobs.verify:reproduce"),
}
