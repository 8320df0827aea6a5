"""One training run: train one model and write it as a checkpoint that knows how it was made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.output import OutputDirectory
from soupkit.errors import OutputError
from soupkit.events import Report, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.train import Finetune
from soupkit.report.tables import tell_plan
from soupkit.report.tensorboard import EventFile, watched
from soupkit.stages.outputs.described import describe_outputs
from soupkit.stages.training.start import describe_base, model_bytes, prepare, score_written, write_model
from soupkit.stages.training.trajectory import Trajectory, num_written
from soupkit.task.epochs import num_batches
from soupkit.task.randomness import torch_threads
from soupkit.task.task import Trainee
from soupkit.train.averages import averagings
from soupkit.train.draws import HYPER_PARAMETERS
from soupkit.train.loop import Fitted, fit
from soupkit.world import World


def train_run(recipe: Finetune, world: World, report: Report) -> Json:
    """Train on train, score the written checkpoint on held-out and test; returns its manifest.

    Raises TaskError, RecipeError or OutputError before training for whatever can be known then.
    """
    began = time.perf_counter()
    with torch_threads(world.num_threads):
        start = prepare(recipe, world, report)
        return train_from(start.base, start.task, recipe, world, report, began=began)


def train_from(
    base: Checkpoint | None,
    task: Trainee,
    recipe: Finetune,
    world: World,
    report: Report,
    *,
    began: float,
) -> Json:
    """The same for a task whose model has the weights of `base` (None: random ones) and is not trained yet.

    began: the time from which on the run is said to have lasted.
    """
    per_epoch = num_batches(len(task.train), recipe.batch_size)
    averages = averagings(recipe, task.saved, epochs=recipe.epochs, updates_per_epoch=per_epoch)
    num_bytes = model_bytes(task.saved) * num_written(recipe)
    files = base.files if base else ()
    output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, num_bytes=num_bytes, inputs=files)
    if recipe.dry_run:
        return _show_plan(base, task, recipe, report)
    with output as directory, _to_tensorboard(recipe, report) as watched_report:
        inputs = describe_base(base, recipe, world)
        trajectory = Trajectory(directory, task, recipe, averages, inputs)
        fitted = Fitted([])
        if recipe.epochs:
            fitted = fit(
                task,
                recipe,
                report=watched_report,
                averages=averages.values(),
                after_epoch=trajectory.after_epoch,
            )
        manifest = _write_run(directory, task, trajectory, recipe, world, watched_report)
        manifest.notes.update(fitted.notes, seconds=round(time.perf_counter() - began, 3))
        manifest.write(directory)
    report(Wrote(recipe.out, num_bytes))
    return manifest.to_json()


def _write_run(
    directory: Path, task: Trainee, trajectory: Trajectory, recipe: Finetune, world: World, report: Report
) -> Manifest:
    """Write the trained weights and their averages, and score them; returns the manifest, which is not yet
    written."""
    content = write_model(directory, task)
    metrics = score_written(directory, task, recipe, world, report)
    averages = trajectory.finish(
        lambda written: score_written(written, task, recipe, world, report, name=written.name)
    )
    hyper_parameters = {name: getattr(recipe, name) for name in HYPER_PARAMETERS}
    return Manifest(
        command="finetune",
        recipe=recipe_to_json(recipe),
        inputs=trajectory.inputs,
        outputs=describe_outputs(directory, content),
        metrics=metrics,
        notes={"hyper_parameters": hyper_parameters, **task.notes}
        | ({"averages": averages} if averages else {}),
    )


@contextmanager
def _to_tensorboard(recipe: Finetune, report: Report) -> Iterator[Report]:
    """The report, and the curves of this run as event files, where they are wanted."""
    if recipe.tensorboard is None:
        yield report
        return
    try:
        file = EventFile(recipe.tensorboard / recipe.out.name)
    except OSError as error:
        raise OutputError(f"{recipe.tensorboard}: cannot be written: {error.strerror}") from error
    with file:
        yield watched(report, file)


def _show_plan(base: Checkpoint | None, task: Trainee, recipe: Finetune, report: Report) -> Json:
    """What --dry-run prints: everything is checked by now, nothing is trained or written."""
    values = {
        "model": task.name,
        "base": base.reference if base else "random weights",
        "parameters": sum(parameter.numel() for parameter in task.saved.parameters()),
        "training examples": len(task.train),
        "bytes to write": model_bytes(task.saved) * num_written(recipe),
        **{name.replace("_", " "): getattr(recipe, name) for name in HYPER_PARAMETERS},
    }
    return tell_plan(values, report, nothing="was trained")
