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
    """One command: where its recipe type and its job live, and whether the job knows what to do with many ranks."""

    recipe: str
    job: str
    ranks: bool = False

    def recipe_type(self) -> type[Any]:
        """Import the recipe dataclass (cheap: no numpy, no torch)."""
        kind: type[Any] = _load(self.recipe)
        return kind

    def load_job(self) -> Job:
        """Import the job and what it needs."""
        job: Job = _load(self.job)
        return job

    def run(self, recipe: Any, world: World, report: Report) -> dict[str, Any]:
        """Run the job: in every rank where it has ranks, else in rank 0, whose result or error is every rank's."""
        job = self.load_job()
        if world.size == 1:
            return job(recipe, world, report)
        with world.group():
            return (
                job(recipe, world, report) if self.ranks else world.in_main(lambda: job(recipe, world.alone(), report))
            )


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)


COMMANDS: dict[str, Command] = {
    "demo": Command("soupkit.recipe.run:Demo", "soupkit.jobs.demo:demo"),
    "run": Command("soupkit.recipe.run:Run", "soupkit.jobs.run:run", ranks=True),
    "merge uniform": Command("soupkit.recipe.merge:MergeUniform", "soupkit.jobs.merge:merge_uniform"),
    "merge weighted": Command("soupkit.recipe.merge:MergeWeighted", "soupkit.jobs.merge:merge_weighted"),
    "merge interpolate": Command("soupkit.recipe.merge:MergeInterpolate", "soupkit.jobs.interpolate:merge_interpolate"),
    "merge swa": Command("soupkit.recipe.averages:MergeSwa", "soupkit.jobs.averages:merge_swa"),
    "merge ema": Command("soupkit.recipe.averages:MergeEma", "soupkit.jobs.averages:merge_ema"),
    "merge posthoc-ema": Command("soupkit.recipe.averages:MergePosthocEma", "soupkit.jobs.averages:merge_posthoc_ema"),
    "merge greedy": Command("soupkit.recipe.merge:MergeGreedy", "soupkit.jobs.greedy:merge_greedy", ranks=True),
    "merge learned": Command("soupkit.recipe.soup:MergeLearned", "soupkit.jobs.learned:merge_learned", ranks=True),
    "merge mehl": Command("soupkit.recipe.soup:MergeMehl", "soupkit.jobs.mehl:merge_mehl", ranks=True),
    "merge twa": Command("soupkit.recipe.soup:MergeTwa", "soupkit.jobs.twa:merge_twa", ranks=True),
    "merge evolve": Command("soupkit.recipe.soup:MergeEvolve", "soupkit.jobs.evolve:merge_evolve", ranks=True),
    "merge linear": Command("soupkit.recipe.methods:MergeLinear", "soupkit.jobs.methods:merge_method"),
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
    "curve fit": Command("soupkit.recipe.curve:CurveFit", "soupkit.jobs.curve:curve_fit"),
    "curve point": Command("soupkit.recipe.curve:CurvePoint", "soupkit.jobs.curve_point:curve_point"),
    "curve evaluate": Command(
        "soupkit.recipe.curve:CurveEvaluate", "soupkit.jobs.curve_evaluate:curve_evaluate", ranks=True
    ),
    "chain": Command("soupkit.recipe.curve:Chain", "soupkit.jobs.chain:chain", ranks=True),
    "plane": Command("soupkit.recipe.curve:Plane", "soupkit.jobs.plane:plane", ranks=True),
    "fge": Command("soupkit.recipe.curve:Fge", "soupkit.jobs.fge:fge"),
    "ensemble": Command("soupkit.recipe.curve:Ensemble", "soupkit.jobs.ensemble:ensemble"),
    "align": Command("soupkit.recipe.align:Align", "soupkit.jobs.align:align"),
    "repair": Command("soupkit.recipe.align:Repair", "soupkit.jobs.repair:repair"),
    "barrier": Command("soupkit.recipe.align:Barrier", "soupkit.jobs.barrier:barrier_job"),
    "align groups": Command("soupkit.recipe.align_groups:AlignGroups", "soupkit.jobs.align_groups:align_groups"),
    "extract-lora": Command("soupkit.recipe.lora:ExtractLora", "soupkit.jobs.extract_lora:extract_lora"),
    "evaluate": Command("soupkit.recipe.evaluate:Evaluate", "soupkit.jobs.evaluate:evaluate", ranks=True),
    "finetune": Command("soupkit.recipe.train:Finetune", "soupkit.jobs.finetune:finetune"),
    "train-population": Command(
        "soupkit.recipe.population:TrainPopulation", "soupkit.jobs.population:train_population", ranks=True
    ),
    "finetune-sweep": Command("soupkit.recipe.train:FinetuneSweep", "soupkit.jobs.sweep:finetune_sweep"),
    "convert": Command("soupkit.recipe.hub:Convert", "soupkit.jobs.convert:convert"),
    "pull": Command("soupkit.recipe.hub:Pull", "soupkit.jobs.hub:pull"),
    "push": Command("soupkit.recipe.hub:Push", "soupkit.jobs.hub:push"),
    "methods": Command("soupkit.recipe.env:Methods", "soupkit.jobs.methods_table:methods"),
    "env": Command("soupkit.recipe.env:Env", "soupkit.jobs.env:env"),
    "cache": Command("soupkit.recipe.cache:Cache", "soupkit.jobs.cache:cache"),
    "inspect": Command("soupkit.recipe.inspect:Inspect", "soupkit.jobs.inspect:inspect"),
    "diff": Command("soupkit.recipe.inspect:Diff", "soupkit.jobs.diff:diff"),
    "report": Command("soupkit.recipe.report:Report", "soupkit.jobs.report:report"),
    "verify": Command("soupkit.recipe.inspect:Verify", "soupkit.jobs.verify:verify"),
    "reproduce": Command("soupkit.recipe.inspect:Reproduce", "soupkit.jobs.verify:reproduce"),
}
