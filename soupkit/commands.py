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
    """One command: where its recipe type and its job live, and whether the job knows what to do with many ranks.

    recipe is below `soupkit.recipe`, job below `soupkit.jobs`, each as `module:name`.
    """

    recipe: str
    job: str
    ranks: bool = False

    def recipe_type(self) -> type[Any]:
        """Import the recipe dataclass (cheap: no numpy, no torch)."""
        kind: type[Any] = _load(f"soupkit.recipe.{self.recipe}")
        return kind

    def load_job(self) -> Job:
        """Import the job and what it needs."""
        job: Job = _load(f"soupkit.jobs.{self.job}")
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


METHOD = "merge.method:merge_method"

COMMANDS: dict[str, Command] = {
    "demo": Command("run:Demo", "recipes.demo:demo"),
    "run": Command("run:Run", "recipes.run:run", ranks=True),
    "merge uniform": Command("merge:MergeUniform", "merge.uniform:merge_uniform"),
    "merge weighted": Command("merge:MergeWeighted", "merge.uniform:merge_weighted"),
    "merge interpolate": Command("merge:MergeInterpolate", "merge.interpolate:merge_interpolate"),
    "merge swa": Command("averages:MergeSwa", "merge.averages:merge_swa"),
    "merge ema": Command("averages:MergeEma", "merge.averages:merge_ema"),
    "merge posthoc-ema": Command("averages:MergePosthocEma", "merge.averages:merge_posthoc_ema"),
    "merge greedy": Command("merge:MergeGreedy", "soups.greedy:merge_greedy", ranks=True),
    "merge learned": Command("soup:MergeLearned", "soups.learned:merge_learned", ranks=True),
    "merge mehl": Command("soup:MergeMehl", "soups.mehl:merge_mehl", ranks=True),
    "merge twa": Command("soup:MergeTwa", "soups.twa:merge_twa", ranks=True),
    "merge evolve": Command("soup:MergeEvolve", "soups.evolve:merge_evolve", ranks=True),
    "merge linear": Command("methods:MergeLinear", METHOD),
    "merge slerp": Command("methods:MergeSlerp", METHOD),
    "merge nuslerp": Command("methods:MergeNuslerp", METHOD),
    "merge multislerp": Command("methods:MergeMultislerp", METHOD),
    "merge karcher": Command("methods:MergeKarcher", METHOD),
    "merge task-arithmetic": Command("task_vectors:MergeTaskArithmetic", METHOD),
    "merge ties": Command("task_vectors:MergeTies", METHOD),
    "merge dare-linear": Command("task_vectors:MergeDareLinear", METHOD),
    "merge dare-ties": Command("task_vectors:MergeDareTies", METHOD),
    "merge della-linear": Command("task_vectors:MergeDellaLinear", METHOD),
    "merge della-ties": Command("task_vectors:MergeDellaTies", METHOD),
    "merge breadcrumbs": Command("task_vectors:MergeBreadcrumbs", METHOD),
    "merge breadcrumbs-ties": Command("task_vectors:MergeBreadcrumbsTies", METHOD),
    "merge model-stock": Command("task_vectors:MergeModelStock", METHOD),
    "merge sce": Command("task_vectors:MergeSce", METHOD),
    "merge consensus": Command("task_vectors:MergeConsensus", METHOD),
    "merge tall-mask": Command("task_vectors:MergeTallMask", METHOD),
    "merge nearswap": Command("task_vectors:MergeNearswap", METHOD),
    "merge fusion": Command("methods:MergeFusion", METHOD),
    "merge fisher": Command("methods:MergeFisher", METHOD),
    "merge regmean": Command("methods:MergeRegmean", METHOD),
    "merge passthrough": Command("methods:MergePassthrough", METHOD),
    "merge mergekit": Command("methods:MergeMergekit", "merge.mergekit:merge_mergekit"),
    "curve fit": Command("curve:CurveFit", "curves.fit:curve_fit"),
    "curve point": Command("curve:CurvePoint", "curves.point:curve_point"),
    "curve evaluate": Command("curve:CurveEvaluate", "curves.evaluate:curve_evaluate", ranks=True),
    "chain": Command("curve:Chain", "curves.chain:chain", ranks=True),
    "plane": Command("curve:Plane", "curves.plane:plane", ranks=True),
    "fge": Command("curve:Fge", "curves.fge:fge"),
    "ensemble": Command("curve:Ensemble", "judge.ensemble:ensemble"),
    "align": Command("align:Align", "align.align:align"),
    "repair": Command("align:Repair", "align.repair:repair"),
    "barrier": Command("align:Barrier", "align.barrier:barrier_job"),
    "align groups": Command("align_groups:AlignGroups", "align.groups:align_groups"),
    "extract-lora": Command("lora:ExtractLora", "files.extract_lora:extract_lora"),
    "evaluate": Command("evaluate:Evaluate", "judge.evaluate:evaluate", ranks=True),
    "finetune": Command("train:Finetune", "training.finetune:finetune"),
    "train-population": Command("population:TrainPopulation", "training.population:train_population", ranks=True),
    "finetune-sweep": Command("train:FinetuneSweep", "training.sweep:finetune_sweep"),
    "convert": Command("hub:Convert", "files.convert:convert"),
    "pull": Command("hub:Pull", "files.hub:pull"),
    "push": Command("hub:Push", "files.hub:push"),
    "methods": Command("env:Methods", "about.methods:methods"),
    "env": Command("env:Env", "about.env:env"),
    "cache": Command("cache:Cache", "files.cache:cache"),
    "inspect": Command("inspect:Inspect", "files.inspect:inspect"),
    "diff": Command("inspect:Diff", "files.diff:diff"),
    "report": Command("report:Report", "files.report:report"),
    "verify": Command("inspect:Verify", "files.verify:verify"),
    "reproduce": Command("inspect:Reproduce", "files.verify:reproduce"),
}
