"""`finetune-sweep`: many fine-tunes of one base, the ingredients of a soup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.quantized import refuse_quantized
from soupkit.checkpoint.reference import local_path, open_checkpoint
from soupkit.errors import DivergedError, SoupkitError, WorkerDiedError
from soupkit.events import Advanced, Event, Finished, Report, Scored, Started, Told, Warned
from soupkit.given import given_by
from soupkit.jsons import Json, JsonView
from soupkit.manifest import Manifest
from soupkit.recipe.train import Finetune, FinetuneSweep
from soupkit.report.leaderboard import write_leaderboard
from soupkit.stages.training.run import train_run
from soupkit.stages.training.start import prepare
from soupkit.train.draws import grid_size, ranges_of, varying
from soupkit.train.optimize import build_optimizer
from soupkit.train.pool import Execute, raise_named, run_here, run_in_processes
from soupkit.train.sweep import (
    Run,
    finished,
    leaderboard,
    opened,
    plan_probe,
    plan_runs,
    ranking,
    remove_unfinished,
    settings_table,
    write_sweep,
)
from soupkit.world import ALONE, World, available_cores


def finetune_sweep(
    recipe: FinetuneSweep, world: World, report: Report, *, execute: Execute | None = None
) -> Json:
    """Train every run that is not finished and write the sweep's manifest, anew after each; returns the last.

    Runs are independent of each other and of `jobs`: each is trained by one thread from its own seed. A run
    that diverges, or whose worker dies, is trained again, up to `retries` times; if it fails for good, the
    others go on, and the sweep ends with its error. On any other failure, and on KeyboardInterrupt, finished
    runs stay and the same command continues. execute: where runs are trained, if not where the recipe says.
    Raises RecipeError, TaskError or OutputError before any training for what can be known then.
    """
    runs = plan_runs(recipe)
    if recipe.draw == "grid" and len(runs) < grid_size(recipe):
        report(
            Warned(
                f"the grid has {grid_size(recipe)} points; only the first {len(runs)} are trained "
                f"(--num-runs 0: all)"
            )
        )
    base = open_checkpoint(recipe.base)
    refuse_quantized([base])
    if recipe.dry_run:
        _check(runs, recipe, report)
        report(settings_table(runs))
        return {"plan": {run.name: run.settings for run in runs}}
    base_content = content_hash(base, threads=world.num_threads)
    with opened(recipe.out):
        remove_unfinished(runs)
        sweep = _Sweep(recipe, {run.name: run for run in runs}, report)
        sweep.data = given_by({"data": recipe.data, "data_dir": recipe.data_dir}).get("data")
        sweep.probe, start = _linear_probe(sweep, base_content, world)
        for run in runs if recipe.resume else ():
            sweep.find(run, start)
        try:
            _train(sweep, world, execute)
        finally:
            remove_unfinished(runs)
        rows = ranking(runs, sweep.done)
        table = leaderboard(rows)
        report(table)
        write_leaderboard(recipe.out, rows, caption=table.caption)
        if recipe.plots:
            _plot(sweep, rows)
        sweep.raise_lost()
        return sweep.write().to_json()


@dataclass
class _Sweep:
    """What the parent knows while runs are trained: the finished ones, and how each under way is getting on.

    lowered: how often a run's learning rate was lowered. tries: how often it failed. lost: those that failed
    for good.
    """

    recipe: FinetuneSweep
    runs: dict[str, Run]
    report: Report
    done: dict[str, Manifest] = field(default_factory=dict)
    probe: Manifest | None = None
    data: str | None = None
    lowered: dict[str, int] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    lost: dict[str, SoupkitError] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        manifest = Manifest.read_if_any(self.recipe.out)
        self.lowered = dict(manifest.notes.get("lowered", {})) if manifest else {}

    def write(self) -> Manifest:
        runs = list(self.runs.values())
        return write_sweep(self.recipe, runs, self.done, lowered=self.lowered, probe=self.probe)

    def find(self, run: Run, base_content: str) -> None:
        """Take note of a run if it is finished already."""
        lowered = self.lowered.get(run.name, 0)
        manifest = finished(
            run, base_content, overwrite=self.recipe.overwrite, lowered=lowered, data=self.data
        )
        if manifest:
            self.done[run.name] = manifest
        else:
            self.lowered.pop(run.name, None)

    def finish(self, name: str, values: JsonView) -> None:
        """A run is finished, its directory in place."""
        manifest = self.done[name] = Manifest(**values)
        self.write()
        top1 = manifest.metrics["held_out"]["top1"]
        self.report(
            Scored(name, "top1", top1["value"], top1["standard_error"], top1["num_examples"], "held-out")
        )

    def fail(self, name: str, error: SoupkitError, world: World) -> tuple[object, ...] | None:
        """A run failed: what to try next, None when there is nothing left to try. Ends all for any other
        failure."""
        if not isinstance(error, DivergedError | WorkerDiedError):
            raise_named(name, error)
        self.report(Advanced("sweep", -self.shares.pop(name, 0.0), name))
        self.tries[name] = self.tries.get(name, 0) + 1
        lowered = self.lowered.get(name, 0) + isinstance(error, DivergedError)
        again = self.runs[name].lowered(lowered)
        again = _anywhere(again) if again and self.recipe.ray else again
        if self.tries[name] > self.recipe.retries or again is None:
            self.lost[name] = error
            self.report(Warned(f"{name}: {error.message}; given up, the others go on"))
            return None
        if lowered:
            self.lowered[name] = lowered
            self.write()  # before it is trained: a sweep that is killed must know it when it finds it
        with_rate = f" with learning rate {again.lr:g}" if isinstance(error, DivergedError) else ""
        self.report(Warned(f"{name}: {error.message}; trained again{with_rate}"))
        return again, world

    def raise_lost(self) -> None:
        """End with the error of the runs that failed for good, where there are any."""
        if not self.lost:
            return
        self.write()
        name, error = next(iter(self.lost.items()))
        others = f", and {len(self.lost) - 1} other runs failed" if len(self.lost) > 1 else ""
        tries = f" ({self.tries[name]} attempts{others}; the finished runs are complete)"
        raise type(error)(f"{name}: {error.message}{tries}", hint=error.hint)

    def hear(self, name: str, event: Event) -> None:
        """An event of a run: its progress moves the sweep's, counted in runs; what it tells the reader is
        told."""
        if isinstance(event, Started) and event.task == "train":
            self.lengths[name], self.shares[name] = event.total or 1, 0.0
        elif isinstance(event, Advanced) and event.task == "train":
            share = event.by / self.lengths[name]
            self.shares[name] += share
            self.report(Advanced("sweep", share, f"{name} {event.note}"))
        elif isinstance(event, Warned):
            self.report(Warned(f"{name}: {event.message}"))


def _linear_probe(sweep: _Sweep, base_content: str, world: World) -> tuple[Manifest | None, str]:
    """Train the head that every run starts from, unless it is there; returns its manifest and the start's
    content."""
    probe = plan_probe(sweep.recipe)
    if probe is None:
        return None, base_content
    recipe = sweep.recipe
    manifest = (
        finished(probe, base_content, overwrite=recipe.overwrite, data=sweep.data) if recipe.resume else None
    )
    if manifest is None:
        _check([*sweep.runs.values()], sweep.recipe, sweep.report)
        sweep.write()  # now it is known to be a sweep, should this be killed
        own = replace(probe.recipe, overwrite=recipe.overwrite)
        manifest = Manifest(**train_run(own, replace(world, threads=1), sweep.report))
    return manifest, str(manifest.outputs["content"])


def _train(sweep: _Sweep, world: World, execute: Execute | None) -> None:
    """Train what is not finished."""
    recipe, todo = sweep.recipe, [run for name, run in sweep.runs.items() if name not in sweep.done]
    if sweep.done:
        sweep.report(Told(f"{len(sweep.done)} of {len(sweep.runs)} runs are finished already"))
    if not todo:
        return
    _check(todo, recipe, sweep.report)
    sweep.write()
    sweep.report(Started("sweep", len(todo), "run"))
    alone = replace(world.alone(), threads=1)
    pieces = {run.name: (_anywhere(run.recipe) if recipe.ray else run.recipe, alone) for run in todo}
    execute = execute or _executor(recipe, len(todo))
    execute(
        train_run,
        pieces,
        on_event=sweep.hear,
        on_result=sweep.finish,
        on_failure=lambda name, error: sweep.fail(name, error, alone),
    )
    sweep.report(Finished("sweep"))


def _anywhere(recipe: Finetune) -> Finetune:
    """The same recipe for a machine whose working directory is another one."""
    base = recipe.base
    if base is not None and local_path(base).exists():
        base = str(local_path(base).absolute())
    board = recipe.tensorboard and recipe.tensorboard.absolute()
    return replace(recipe, out=recipe.out.absolute(), base=base, tensorboard=board)


def _executor(recipe: FinetuneSweep, num_runs: int) -> Execute:
    """This process, worker processes, or a Ray cluster."""
    if recipe.ray is not None:
        from soupkit.train.ray_pool import run_on_ray

        return partial(run_on_ray, address=recipe.ray, num_at_a_time=recipe.jobs, device=recipe.device)
    num_processes = min(recipe.jobs or available_cores(), num_runs)
    return run_here if num_processes == 1 else partial(run_in_processes, num_processes=num_processes)


def _check(todo: list[Run], recipe: FinetuneSweep, report: Report) -> None:
    """Refuse what base, data, model or optimizer would refuse in any of the runs."""
    if recipe.ray is not None:
        from soupkit.train.ray_pool import require_ray

        require_ray()
    probe = plan_probe(recipe)
    model = prepare(probe.recipe if probe else todo[0].recipe, ALONE, report).task.model
    for run in todo:
        _naming(run.name, partial(build_optimizer, model, run.recipe))


def _naming(run: str, check: Callable[[], object]) -> None:
    try:
        check()
    except SoupkitError as error:
        raise_named(run, error)


def _plot(sweep: _Sweep, rows: list[Json]) -> None:
    """Draw the hyper-parameters that vary against the held-out score."""
    names = varying([{name: row[name] for name in sweep.runs[row["run"]].settings} for row in rows])
    if not names:
        return
    from soupkit.report.scatter import scatter_plots

    drawn = ranges_of(sweep.recipe)
    logarithmic = [
        name for name in names if any(branch.draw.kind == "log" for branch in drawn[name].branches)
    ]
    scatter_plots(
        sweep.recipe.out / "hyper_parameters.png",
        rows,
        names,
        value="held_out_top1",
        error="held_out_standard_error",
        ylabel="held-out top-1 ± s.e.",
        logarithmic=logarithmic,
    )
