"""The table of commands: name → recipe → job.

Both are strings, so that `soupkit --help` imports neither numpy nor torch. A job is
`job(recipe, world, report) → dict`: what `--json` prints, and what a manifest holds where the command writes
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

import soupkit.recipe.methods as recipe_methods
import soupkit.recipe.task_vectors as recipe_task_vectors
from soupkit.asked import Recipe
from soupkit.exhausted import explained
from soupkit.jsons import Json

if TYPE_CHECKING:
    from soupkit.events import Report
    from soupkit.world import World

Job = Callable[[Any, "World", "Report"], Json]


@dataclass(frozen=True)
class Command:
    """One command: where its recipe type and its job live, and whether the job knows what to do with many
    ranks.

    Each as `module:name`.
    """

    recipe: str
    job: str
    ranks: bool = False

    def recipe_type(self) -> type[Recipe]:
        """Import the recipe dataclass (cheap: no numpy, no torch)."""
        kind: type[Recipe] = _load(self.recipe)
        return kind

    def load_job(self) -> Job:
        """Import the job and what it needs. It refuses a device that is not there, and explains when memory
        runs out."""
        job: Job = _load(self.job)

        @wraps(job)
        def checked(recipe: Recipe, world: World, report: Report, **more: object) -> Json:
            world.check_device()
            with explained(recipe):
                return job(recipe, world, report, **more)

        return checked

    def run(self, recipe: Recipe, world: World, report: Report) -> Json:
        """Run the job: in every rank where it has ranks, else in rank 0, whose result or error is every
        rank's."""
        job = self.load_job()
        if world.size == 1:
            return job(recipe, world, report)
        with world.group():
            return (
                job(recipe, world, report)
                if self.ranks
                else world.in_main(lambda: job(recipe, world.alone(), report))
            )


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)


def _command(recipe: str, job: str, *, ranks: bool = False) -> Command:
    return Command(f"soupkit.recipe.{recipe}", f"soupkit.jobs.{job}", ranks)


def methods() -> dict[str, Command]:
    """A command for each file that declares a method: `task_vectors/dare_ties.py` is `merge dare-ties`."""
    return {
        f"merge {name.replace('_', '-')}": Command(
            f"{package.__name__}.{name}:Merge{name.title().replace('_', '')}",
            "soupkit.jobs.merge.method:merge_method",
        )
        for package in (recipe_methods, recipe_task_vectors)
        for _, name, _ in iter_modules(package.__path__)
    }


COMMANDS: dict[str, Command] = {
    "demo": _command("run:Demo", "recipes.demo:demo"),
    "run": _command("run:Run", "recipes.run:run", ranks=True),
    "merge uniform": _command("merge:MergeUniform", "merge.uniform:merge_uniform"),
    "merge weighted": _command("merge:MergeWeighted", "merge.uniform:merge_weighted"),
    "merge interpolate": _command("merge:MergeInterpolate", "merge.interpolate:merge_interpolate"),
    "merge swa": _command("averages:MergeSwa", "merge.averages:merge_swa"),
    "merge ema": _command("averages:MergeEma", "merge.averages:merge_ema"),
    "merge posthoc-ema": _command("averages:MergePosthocEma", "merge.averages:merge_posthoc_ema"),
    "merge trajectory": _command("averages:MergeTrajectory", "merge.trajectory:merge_trajectory"),
    "merge greedy": _command("merge:MergeGreedy", "soups.greedy:merge_greedy", ranks=True),
    "merge learned": _command("soup:MergeLearned", "soups.learned:merge_learned", ranks=True),
    "merge mehl": _command("soup:MergeMehl", "soups.mehl:merge_mehl", ranks=True),
    "merge twa": _command("soup:MergeTwa", "soups.twa:merge_twa", ranks=True),
    "merge evolve": _command("soup:MergeEvolve", "soups.evolve:merge_evolve", ranks=True),
    **methods(),
    "merge mergekit": _command("merge:MergeMergekit", "merge.mergekit:merge_mergekit"),
    "curve fit": _command("curve:CurveFit", "curves.fit:curve_fit"),
    "curve point": _command("curve:CurvePoint", "curves.point:curve_point"),
    "curve evaluate": _command("curve:CurveEvaluate", "curves.evaluate:curve_evaluate", ranks=True),
    "chain": _command("curve:Chain", "curves.chain:chain", ranks=True),
    "plane": _command("curve:Plane", "curves.plane:plane", ranks=True),
    "fge": _command("curve:Fge", "curves.fge:fge"),
    "ensemble": _command("curve:Ensemble", "judge.ensemble:ensemble"),
    "align": _command("align:Align", "align.align:align"),
    "repair": _command("align:Repair", "align.repair:repair"),
    "barrier": _command("align:Barrier", "align.barrier:barrier_job"),
    "align groups": _command("align_groups:AlignGroups", "align.groups:align_groups"),
    "extract-lora": _command("lora:ExtractLora", "files.extract_lora:extract_lora"),
    "evaluate": _command("evaluate:Evaluate", "judge.evaluate:evaluate", ranks=True),
    "finetune": _command("train:Finetune", "training.finetune:finetune"),
    "train-population": _command(
        "population:TrainPopulation", "training.population:train_population", ranks=True
    ),
    "finetune-sweep": _command("train:FinetuneSweep", "training.sweep:finetune_sweep"),
    "convert": _command("hub:Convert", "files.convert:convert"),
    "export": _command("hub:Export", "files.export:export"),
    "pull": _command("hub:Pull", "files.hub:pull"),
    "push": _command("hub:Push", "files.hub:push"),
    "methods": _command("env:Methods", "about.methods:methods"),
    "env": _command("env:Env", "about.env:env"),
    "cache": _command("cache:Cache", "files.cache:cache"),
    "inspect": _command("inspect:Inspect", "files.inspect:inspect"),
    "diff": _command("inspect:Diff", "files.diff:diff"),
    "report": _command("report:Report", "files.report:report"),
    "verify": _command("inspect:Verify", "files.verify:verify"),
    "reproduce": _command("inspect:Reproduce", "files.verify:reproduce"),
}
