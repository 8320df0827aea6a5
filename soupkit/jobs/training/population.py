"""`train-population`: train members that learn from each other's weights, then make and score their soups."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory, check_output
from soupkit.errors import RecipeError
from soupkit.events import Report, Table, Told
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.population import TrainPopulation
from soupkit.recipe.train import Finetune
from soupkit.report.tables import tell_plan
from soupkit.stages.inputs.seen import chosen_on
from soupkit.stages.outputs.described import describe_outputs
from soupkit.stages.training.population_folder import RunFolder
from soupkit.stages.training.population_results import finish_population, show_results
from soupkit.stages.training.population_seams import seams_of
from soupkit.stages.training.start import (
    Start,
    describe_base,
    model_bytes,
    prepare,
    score_written,
    write_model,
)
from soupkit.stages.training.trajectory import Trajectory
from soupkit.task.images.stem import for_small_images
from soupkit.task.images.task import build_classifier
from soupkit.task.randomness import Stream, seeded, torch_threads
from soupkit.task.task import Trainee
from soupkit.train.folder import held
from soupkit.train.population.flat import Flat
from soupkit.train.population.grid import Grid
from soupkit.train.population.members import Member
from soupkit.train.population.merging import merges_after
from soupkit.train.population.population import Population
from soupkit.train.population.regularise import REGULARISATION, member_name, member_recipes
from soupkit.train.population.state import load_state, save_state
from soupkit.train.population.vectorised import choose_advance
from soupkit.world import World

COMMAND = "train-population"


@dataclass(frozen=True)
class Plan:
    """What is known before training: the recipe with its model resolved, each member's, the start, and the
    ranks."""

    recipe: TrainPopulation
    members: list[Finetune]
    start: Start
    grid: Grid


def train_population(recipe: TrainPopulation, world: World, report: Report) -> Json:
    """Train, write every member, their average and greedy soups, and score them all; returns the manifest.

    An unfinished run in `out` goes on where its last saved state was, with the same bits on the same CPU.
    Every rank trains its share of the members. Raises TaskError, RecipeError or OutputError before training
    for what can be known.
    """
    with torch_threads(world.num_threads):
        device = world.torch_device()
        plan = _plan(recipe, world, report)
        if recipe.dry_run:
            return _show_plan(plan, report)
        run = RunFolder(
            recipe, content_hash(plan.start.base, threads=world.num_threads) if plan.start.base else None
        )
        with _held(run, world):
            done = run.finished()
            if done is None:
                _train(plan, run, device, world, report)
                done = _finish(plan, run, world, report)
            elif world.is_main:
                report(Told(f"{recipe.out} is finished already"))
                show_results(done, report)
            if world.is_main:  # here, for a kill may come between the manifest and this
                shutil.rmtree(run.state, ignore_errors=True)
    return done.to_json()


def _plan(recipe: TrainPopulation, world: World, report: Report) -> Plan:
    """Open everything and refuse what cannot work; trains nothing."""
    if recipe.stem == "small":
        if recipe.base is not None or recipe.model is None:
            raise RecipeError(
                "stem small is for random weights; a base keeps its own input size", hint="leave one out"
            )
        recipe = dataclasses.replace(recipe, model=for_small_images(recipe.model))
    members = member_recipes(recipe)
    grid = Grid(world, recipe.num_members, ranks_per_member=recipe.ranks_per_member)
    start = prepare(members[0], world, report)
    if grid.num_parts > recipe.batch_size // 2:
        raise RecipeError(
            f"{grid.num_parts} ranks cannot share batches of {recipe.batch_size}", hint="raise --batch-size"
        )
    check_output(recipe.out / member_name(0), overwrite=True, num_bytes=_bytes_to_write(recipe, start))
    return Plan(recipe, members, start, grid)


@contextmanager
def _held(run: RunFolder, world: World) -> Iterator[None]:
    """The folder, held by rank 0 for all; what another recipe left there is refused or removed before anyone
    looks."""
    holding = held(run.out, command=COMMAND, what="population", mark=run.state.name)
    with holding if world.is_main else nullcontext():
        if world.is_main:
            run.prepare()
        world.barrier()
        yield
        world.barrier()


def _train(plan: Plan, run: RunFolder, device: torch.device, world: World, report: Report) -> None:
    """Train from the last saved state on, and write this rank's members."""
    began = time.monotonic()
    population = make_population(plan)
    state = run.last_state()
    if state is not None:
        load_state(population, state)
        report(Told(f"continuing after update {population.num_done} of {population.num_updates}"))

    def save() -> None:
        save_state(population, run.state, run.about())

    advance = choose_advance(population.members, population.flat, wish=plan.recipe.vectorize, device=device)
    population.train(report, advance=advance, after_update=Saving(plan.recipe, world, save))
    save()
    seconds = time.monotonic() - began
    for member in population.members if plan.grid.leads else ():
        _write_member(plan, member, population, world, report, seconds=seconds)
    world.barrier()


class Saving:
    """Decides after every update whether the state is saved: every so many updates, and every so many
    minutes."""

    def __init__(self, recipe: TrainPopulation, world: World, save: Callable[[], None]) -> None:
        self.recipe, self.world, self.save = recipe, world, save
        self.last = time.monotonic()

    def __call__(self, population: Population) -> None:
        """Save if it is time; rank 0's clock is everyone's, and it is asked between pulls only."""
        every, minutes = self.recipe.save_every, self.recipe.save_minutes
        due = bool(every) and population.num_done % every == 0
        if not due and minutes and population.num_done % self.recipe.average_every == 0:
            due = self.world.broadcast(time.monotonic() - self.last > 60 * minutes)
        if due:
            self.save()
            self.last = time.monotonic()


def make_population(plan: Plan) -> Population:
    """This rank's members at the start of training."""
    recipe, grid, own = plan.recipe, plan.grid, plan.start.task
    tasks = [own.around(_initial(plan, number).to(own.device)) for number in grid.members]
    flat = Flat([task.saved for task in tasks], own.device)
    members = []
    for number, task in zip(grid.members, tasks, strict=True):
        member = Member(number, plan.members[number], task, grid=grid)
        member.probe_for(recipe.linear_probe)
        members.append(member)
    return Population(members, flat, recipe, grid, seams=seams_of(recipe, own))


def _initial(plan: Plan, number: int) -> torch.nn.Module:
    """A member's model: the base, or random weights, its own or everyone's."""
    base, task = plan.start.base, plan.start.task
    if base is not None or plan.recipe.same_init or number == 0:
        return deepcopy(task.model)
    with seeded(plan.members[number].seed, Stream.INITIALISATION):
        return build_classifier(task.spec, task.splits, plan.members[number])


def _write_member(
    plan: Plan, member: Member, population: Population, world: World, report: Report, *, seconds: float
) -> None:
    """A member as a checkpoint directory that knows how it was trained and what it is worth."""
    recipe, task = member.recipe, plan.start.task.around(member.model)
    member.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with OutputDirectory(recipe.out, overwrite=True) as directory:
        inputs = describe_base(plan.start.base, recipe, world)
        content = write_model(directory, task)
        metrics = score_written(directory, task, recipe, world.alone(), report)
        chosen = chosen_on(plan.start.task.splits) if plan.recipe.judges else {}
        averages = _write_averages(directory, task, member, inputs, world, report, chosen=chosen)
        manifest = Manifest(
            command=COMMAND,
            recipe=recipe_to_json(plan.recipe),
            inputs=inputs,
            outputs=describe_outputs(directory, content),
            metrics=metrics,
            notes={
                "member": member.number,
                "hyper_parameters": {"seed": recipe.seed}
                | {name: getattr(recipe, name) for name in REGULARISATION},
                **task.notes,
                "loss": [losses[member.number] for losses in population.history.losses],
                "seconds": round(seconds, 3),
            }
            | ({"num_skipped": member.updater.num_skipped} if member.updater.num_skipped else {})
            | averages
            | chosen,
        )
        manifest.write(directory)


def _write_averages(
    directory: Path,
    task: Trainee,
    member: Member,
    inputs: list[Json],
    world: World,
    report: Report,
    *,
    chosen: Json,
) -> Json:
    """EMA and SWA of a member, as checkpoint directories in its own; their scores for its manifest."""
    recipe = member.recipe
    trajectory = Trajectory(directory, task, recipe, member.averages, inputs, chosen)
    scored = trajectory.finish(
        lambda path: score_written(path, task, recipe, world.alone(), report, name=path.name)
    )
    return {"averages": scored} if scored else {}


def _finish(plan: Plan, run: RunFolder, world: World, report: Report) -> Manifest:
    """Soups, scores, plots and the manifest, by rank 0."""
    if world.is_main:
        finish_population(plan.recipe, run, plan.start.task.splits, plan.members, world.alone(), report)
    world.barrier()
    return Manifest.read(run.out)


def _bytes_to_write(recipe: TrainPopulation, start: Start) -> int:
    """Members, soups, and two states with an optimizer of two numbers per weight."""
    return model_bytes(start.task.saved) * (recipe.num_members * 7 + 2)


def _show_plan(plan: Plan, report: Report) -> Json:
    """What --dry-run prints: everything is checked by now, nothing is trained or written."""
    recipe, start, grid = plan.recipe, plan.start, plan.grid
    epochs = [epoch + 1 for epoch in range(recipe.epochs) if merges_after(recipe, epoch)]
    values: Json = {
        "model": recipe.model or start.task.name,
        "base": start.base.reference if start.base else "random weights",
        "parameters": sum(parameter.numel() for parameter in start.task.saved.parameters()),
        "training examples": len(start.task.train),
        "method": recipe.method,
        "pull towards the mean": f"{recipe.pulls:g} every {recipe.average_every} updates"
        if recipe.pulls
        else "none",
        "members replaced after epochs": ", ".join(map(str, epochs)) or "none",
        "ranks": f"{grid.population_size} × {grid.num_parts} (population × data)",
        "bytes to write": _bytes_to_write(recipe, start),
    }
    shown = tell_plan(values, report, nothing="was trained")
    columns = ("member", "seed", *REGULARISATION)
    rows = [
        (member_name(i), m.seed, *(getattr(m, name) for name in REGULARISATION))
        for i, m in enumerate(plan.members)
    ]
    report(Table("members", columns, tuple(rows)))
    return shown | {"members": [dict(zip(columns, row, strict=True)) for row in rows]}
