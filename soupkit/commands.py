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
    from soupkit.asked import Recipe
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

    def run(self, recipe: Recipe, world: World, report: Report) -> dict[str, Any]:
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


def _ours(recipe: str, job: str, *, ranks: bool = False) -> Command:
    """A command whose recipe lies below `soupkit.recipe` and whose job below `soupkit.jobs`."""
    return Command(f"soupkit.recipe.{recipe}", f"soupkit.jobs.{job}", ranks)


METHOD = "merge.method:merge_method"

COMMANDS: dict[str, Command] = {
    "demo": _ours("run:Demo", "recipes.demo:demo"),
    "run": _ours("run:Run", "recipes.run:run", ranks=True),
    "merge uniform": _ours("merge:MergeUniform", "merge.uniform:merge_uniform"),
    "merge weighted": _ours("merge:MergeWeighted", "merge.uniform:merge_weighted"),
    "merge interpolate": _ours("merge:MergeInterpolate", "merge.interpolate:merge_interpolate"),
    "merge swa": _ours("averages:MergeSwa", "merge.averages:merge_swa"),
    "merge ema": _ours("averages:MergeEma", "merge.averages:merge_ema"),
    "merge posthoc-ema": _ours("averages:MergePosthocEma", "merge.averages:merge_posthoc_ema"),
    "merge greedy": _ours("merge:MergeGreedy", "soups.greedy:merge_greedy", ranks=True),
    "merge learned": _ours("soup:MergeLearned", "soups.learned:merge_learned", ranks=True),
    "merge mehl": _ours("soup:MergeMehl", "soups.mehl:merge_mehl", ranks=True),
    "merge twa": _ours("soup:MergeTwa", "soups.twa:merge_twa", ranks=True),
    "merge evolve": _ours("soup:MergeEvolve", "soups.evolve:merge_evolve", ranks=True),
    "merge linear": _ours("methods:MergeLinear", METHOD),
    "merge slerp": _ours("methods:MergeSlerp", METHOD),
    "merge nuslerp": _ours("methods:MergeNuslerp", METHOD),
    "merge multislerp": _ours("methods:MergeMultislerp", METHOD),
    "merge karcher": _ours("methods:MergeKarcher", METHOD),
    "merge task-arithmetic": _ours("task_vectors:MergeTaskArithmetic", METHOD),
    "merge ties": _ours("task_vectors:MergeTies", METHOD),
    "merge dare-linear": _ours("task_vectors:MergeDareLinear", METHOD),
    "merge dare-ties": _ours("task_vectors:MergeDareTies", METHOD),
    "merge della-linear": _ours("task_vectors:MergeDellaLinear", METHOD),
    "merge della-ties": _ours("task_vectors:MergeDellaTies", METHOD),
    "merge breadcrumbs": _ours("task_vectors:MergeBreadcrumbs", METHOD),
    "merge breadcrumbs-ties": _ours("task_vectors:MergeBreadcrumbsTies", METHOD),
    "merge model-stock": _ours("task_vectors:MergeModelStock", METHOD),
    "merge sce": _ours("task_vectors:MergeSce", METHOD),
    "merge consensus": _ours("task_vectors:MergeConsensus", METHOD),
    "merge tall-mask": _ours("task_vectors:MergeTallMask", METHOD),
    "merge nearswap": _ours("task_vectors:MergeNearswap", METHOD),
    "merge fusion": _ours("methods:MergeFusion", METHOD),
    "merge fisher": _ours("methods:MergeFisher", METHOD),
    "merge regmean": _ours("methods:MergeRegmean", METHOD),
    "merge passthrough": _ours("methods:MergePassthrough", METHOD),
    "merge mergekit": _ours("methods:MergeMergekit", "merge.mergekit:merge_mergekit"),
    "curve fit": _ours("curve:CurveFit", "curves.fit:curve_fit"),
    "curve point": _ours("curve:CurvePoint", "curves.point:curve_point"),
    "curve evaluate": _ours("curve:CurveEvaluate", "curves.evaluate:curve_evaluate", ranks=True),
    "chain": _ours("curve:Chain", "curves.chain:chain", ranks=True),
    "plane": _ours("curve:Plane", "curves.plane:plane", ranks=True),
    "fge": _ours("curve:Fge", "curves.fge:fge"),
    "ensemble": _ours("curve:Ensemble", "judge.ensemble:ensemble"),
    "align": _ours("align:Align", "align.align:align"),
    "repair": _ours("align:Repair", "align.repair:repair"),
    "barrier": _ours("align:Barrier", "align.barrier:barrier_job"),
    "align groups": _ours("align_groups:AlignGroups", "align.groups:align_groups"),
    "extract-lora": _ours("lora:ExtractLora", "files.extract_lora:extract_lora"),
    "evaluate": _ours("evaluate:Evaluate", "judge.evaluate:evaluate", ranks=True),
    "finetune": _ours("train:Finetune", "training.finetune:finetune"),
    "train-population": _ours("population:TrainPopulation", "training.population:train_population", ranks=True),
    "finetune-sweep": _ours("train:FinetuneSweep", "training.sweep:finetune_sweep"),
    "convert": _ours("hub:Convert", "files.convert:convert"),
    "pull": _ours("hub:Pull", "files.hub:pull"),
    "push": _ours("hub:Push", "files.hub:push"),
    "methods": _ours("env:Methods", "about.methods:methods"),
    "env": _ours("env:Env", "about.env:env"),
    "cache": _ours("cache:Cache", "files.cache:cache"),
    "inspect": _ours("inspect:Inspect", "files.inspect:inspect"),
    "diff": _ours("inspect:Diff", "files.diff:diff"),
    "report": _ours("report:Report", "files.report:report"),
    "verify": _ours("inspect:Verify", "files.verify:verify"),
    "reproduce": _ours("inspect:Reproduce", "files.verify:reproduce"),
}
