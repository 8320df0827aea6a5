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
    "merge slerp": Command("soupkit.recipe.methods:MergeSlerp", "soupkit.jobs.methods:merge_method"),
    "merge nuslerp": Command("soupkit.recipe.methods:MergeNuslerp", "soupkit.jobs.methods:merge_method"),
    "merge multislerp": Command("soupkit.recipe.methods:MergeMultislerp", "soupkit.jobs.methods:merge_method"),
    "merge karcher": Command("soupkit.recipe.methods:MergeKarcher", "soupkit.jobs.methods:merge_method"),
    "merge task-arithmetic": Command(
        "soupkit.recipe.task_vectors:MergeTaskArithmetic", "soupkit.jobs.methods:merge_method"
    ),
    "merge ties": Command("soupkit.recipe.task_vectors:MergeTies", "soupkit.jobs.methods:merge_method"),
    "merge dare-linear": Command("soupkit.recipe.task_vectors:MergeDareLinear", "soupkit.jobs.methods:merge_method"),
    "merge dare-ties": Command("soupkit.recipe.task_vectors:MergeDareTies", "soupkit.jobs.methods:merge_method"),
    "merge della-linear": Command("soupkit.recipe.task_vectors:MergeDellaLinear", "soupkit.jobs.methods:merge_method"),
    "merge della-ties": Command("soupkit.recipe.task_vectors:MergeDellaTies", "soupkit.jobs.methods:merge_method"),
    "merge breadcrumbs": Command("soupkit.recipe.task_vectors:MergeBreadcrumbs", "soupkit.jobs.methods:merge_method"),
    "merge breadcrumbs-ties": Command(
        "soupkit.recipe.task_vectors:MergeBreadcrumbsTies", "soupkit.jobs.methods:merge_method"
    ),
    "merge model-stock": Command("soupkit.recipe.task_vectors:MergeModelStock", "soupkit.jobs.methods:merge_method"),
    "merge sce": Command("soupkit.recipe.task_vectors:MergeSce", "soupkit.jobs.methods:merge_method"),
    "merge consensus": Command("soupkit.recipe.task_vectors:MergeConsensus", "soupkit.jobs.methods:merge_method"),
    "merge tall-mask": Command("soupkit.recipe.task_vectors:MergeTallMask", "soupkit.jobs.methods:merge_method"),
    "merge nearswap": Command("soupkit.recipe.task_vectors:MergeNearswap", "soupkit.jobs.methods:merge_method"),
    "merge fusion": Command("soupkit.recipe.methods:MergeFusion", "soupkit.jobs.methods:merge_method"),
    "merge fisher": Command("soupkit.recipe.methods:MergeFisher", "soupkit.jobs.methods:merge_method"),
    "merge regmean": Command("soupkit.recipe.methods:MergeRegmean", "soupkit.jobs.methods:merge_method"),
    "merge passthrough": Command("soupkit.recipe.methods:MergePassthrough", "soupkit.jobs.methods:merge_method"),
    "merge mergekit": Command("soupkit.recipe.methods:MergeMergekit", "soupkit.jobs.mergekit:merge_mergekit"),
    "extract-lora": Command("soupkit.recipe.lora:ExtractLora", "soupkit.jobs.extract_lora:extract_lora"),
    "evaluate": Command("soupkit.recipe.evaluate:Evaluate", "soupkit.jobs.evaluate:evaluate"),
    "finetune": Command("soupkit.recipe.train:Finetune", "soupkit.jobs.finetune:finetune"),
    "finetune-sweep": Command("soupkit.recipe.train:FinetuneSweep", "soupkit.jobs.sweep:finetune_sweep"),
    "convert": Command("soupkit.recipe.hub:Convert", "soupkit.jobs.convert:convert"),
    "pull": Command("soupkit.recipe.hub:Pull", "soupkit.jobs.hub:pull"),
    "push": Command("soupkit.recipe.hub:Push", "soupkit.jobs.hub:push"),
    "methods": Command("soupkit.recipe.env:Methods", "soupkit.jobs.methods_table:methods"),
    "env": Command("soupkit.recipe.env:Env", "soupkit.jobs.env:env"),
    "inspect": Command("soupkit.recipe.inspect:Inspect", "soupkit.jobs.inspect:inspect"),
    "diff": Command("soupkit.recipe.inspect:Diff", "soupkit.jobs.inspect:diff"),
    "verify": Command("soupkit.recipe.inspect:Verify", "soupkit.jobs.verify:verify"),
    "reproduce": Command("soupkit.recipe.inspect:Reproduce", "soupkit.jobs.verify:reproduce"),
}
