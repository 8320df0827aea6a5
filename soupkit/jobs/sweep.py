"""`finetune-sweep`: many fine-tunes of one base, the ingredients of a soup."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.errors import SoupkitError
from soupkit.events import Advanced, Event, Finished, Report, Scored, Started, Told, Warned
from soupkit.jobs.finetune import finetune, prepare
from soupkit.manifest import Manifest
from soupkit.recipe.train import Finetune, FinetuneSweep
from soupkit.train.draws import grid_size
from soupkit.train.optimize import build_optimizer
from soupkit.train.pool import run_in_processes
from soupkit.train.sweep import (
    Run,
    finished,
    leaderboard,
    opened,
    plan_runs,
    remove_unfinished,
    settings_table,
    write_sweep,
)
from soupkit.world import World, available_cores


def finetune_sweep(recipe: FinetuneSweep, world: World, report: Report) -> dict[str, Any]:
    """Train every run that is not finished and write the sweep's manifest, anew after each; returns the last.

    Runs are independent of each other and of `jobs`: each is trained by one thread from its own seed. On any failure,
    and on KeyboardInterrupt, finished runs stay and the same command continues. Raises RecipeError, TaskError or
    OutputError before any training for what can be known then.
    """
    runs = plan_runs(recipe)
    if recipe.draw == "grid" and len(runs) < grid_size(recipe):
        report(
            Warned(
                f"the grid has {grid_size(recipe)} points; only the first {len(runs)} are trained (--num-runs 0: all)"
            )
        )
    base = open_checkpoint(recipe.base)
    if recipe.dry_run:
        _check(runs, report)
        report(settings_table(runs))
        return {"plan": {run.name: run.settings for run in runs}}
    base_content = content_hash(base, threads=world.num_threads)
    with opened(recipe.out):
        remove_unfinished(runs)
        found = {run.name: finished(run, base_content, overwrite=recipe.overwrite) for run in runs}
        sweep = _Sweep(recipe, runs, {name: manifest for name, manifest in found.items() if manifest}, report)
        try:
            _train([run for run in runs if not found[run.name]], sweep, world)
        finally:
            remove_unfinished(runs)
        report(leaderboard(runs, sweep.done))
        return sweep.write().to_json()


@dataclass
class _Sweep:
    """What the parent knows while runs are trained: the finished ones, and how long each run under way is."""

    recipe: FinetuneSweep
    runs: list[Run]
    done: dict[str, Manifest]
    report: Report
    lengths: dict[str, float] = field(default_factory=dict)

    def write(self) -> Manifest:
        return write_sweep(self.recipe, self.runs, self.done)

    def finish(self, name: str, values: Mapping[str, Any]) -> None:
        """A run is finished, its directory in place."""
        manifest = self.done[name] = Manifest(**values)
        self.write()
        top1 = manifest.metrics["held_out"]["top1"]
        self.report(Scored(name, "top1", top1["value"], top1["standard_error"], top1["num_examples"], "held-out"))

    def hear(self, name: str, event: Event) -> None:
        """An event of a run: its progress moves the sweep's, counted in runs; what it tells the reader is told."""
        if isinstance(event, Started) and event.task == "train":
            self.lengths[name] = event.total or 1
        elif isinstance(event, Advanced) and event.task == "train":
            self.report(Advanced("sweep", event.by / self.lengths[name], f"{name} {event.note}"))
        elif isinstance(event, Warned):
            self.report(Warned(f"{name}: {event.message}"))


def _train(todo: list[Run], sweep: _Sweep, world: World) -> None:
    """Train what is not finished, here or in worker processes."""
    if sweep.done:
        sweep.report(Told(f"{len(sweep.done)} of {len(sweep.runs)} runs are finished already"))
    if not todo:
        return
    _check(todo, sweep.report)
    sweep.write()
    sweep.report(Started("sweep", len(todo), "run"))
    pieces = {run.name: (run.recipe, replace(world, threads=1)) for run in todo}
    num_processes = min(sweep.recipe.jobs or available_cores(), len(todo))
    if num_processes == 1:
        _in_this_process(pieces, sweep)
    else:
        run_in_processes(finetune, pieces, num_processes=num_processes, on_event=sweep.hear, on_result=sweep.finish)
    sweep.report(Finished("sweep"))


def _check(todo: list[Run], report: Report) -> None:
    """Refuse what base, data, model or optimizer would refuse in any of the runs."""
    model = prepare(todo[0].recipe, report).model
    for run in todo:
        with _naming(run.name):
            build_optimizer(model, run.recipe)


def _in_this_process(pieces: Mapping[str, tuple[Finetune, World]], sweep: _Sweep) -> None:
    for name, (recipe, world) in pieces.items():
        with _naming(name):
            sweep.finish(name, finetune(recipe, world, _hearing(name, sweep.hear)))


@contextmanager
def _naming(run: str) -> Iterator[None]:
    try:
        yield
    except SoupkitError as error:
        raise type(error)(f"{run}: {error.message}", hint=error.hint) from error


def _hearing(name: str, hear: Callable[[str, Event], None]) -> Report:
    return lambda event: hear(name, event)
