"""One training run: train one model and write it as a checkpoint that knows how it was made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from soupkit.checkpoint.output import OutputDirectory
from soupkit.errors import OutputError
from soupkit.events import Report, Wrote
from soupkit.jsons import Json, JsonView
from soupkit.manifest import Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.train import Finetune
from soupkit.report.tables import tell_plan
from soupkit.report.tensorboard import EventFile, watched
from soupkit.stages.outputs.described import describe_outputs
from soupkit.stages.training.start import (
    Start,
    describe_base,
    file_name_of,
    model_bytes,
    prepare,
    score_written,
    training_data,
    write_config_of,
    write_model,
)
from soupkit.stages.training.trajectory import Trajectory, num_written, refresher
from soupkit.task.images.examples import ImageExamples
from soupkit.task.images.task import saved
from soupkit.train.averages import averagings
from soupkit.train.averaging import Averaging
from soupkit.train.batches import num_batches
from soupkit.train.draws import HYPER_PARAMETERS
from soupkit.train.loop import fit
from soupkit.train.randomness import torch_threads
from soupkit.world import World


def train_run(recipe: Finetune, world: World, report: Report) -> Json:
    """Train on train, score the written checkpoint on held-out and test; returns its manifest.

    Raises TaskError, RecipeError or OutputError before training for whatever can be known then.
    """
    began = time.perf_counter()
    with torch_threads(world.num_threads):
        device = world.torch_device()
        start = prepare(recipe, report)
        per_epoch = num_batches(len(start.splits.train), recipe.batch_size)
        averages = averagings(recipe, saved(start.model), epochs=recipe.epochs, updates_per_epoch=per_epoch)
        num_bytes = model_bytes(saved(start.model)) * num_written(recipe)
        files = start.base.files if start.base else ()
        output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, num_bytes=num_bytes, inputs=files)
        if recipe.dry_run:
            return _show_plan(start, recipe, report)
        with output as directory, _to_tensorboard(recipe, report) as watched_report:
            inputs = describe_base(start.base, recipe, world)
            trajectory = trajectory_of(directory, start, recipe, averages, inputs)
            fitted = fit(
                start.model,
                training_data(start),
                recipe,
                device=device,
                report=watched_report,
                averages=averages.values(),
                after_epoch=trajectory.after_epoch,
            )
            manifest = _write_run(directory, start, trajectory, recipe, world, watched_report)
            manifest.notes.update(fitted.notes, seconds=round(time.perf_counter() - began, 3))
            manifest.write(directory)
    report(Wrote(recipe.out, num_bytes))
    return manifest.to_json()


def _write_run(
    directory: Path, start: Start, trajectory: Trajectory, recipe: Finetune, world: World, report: Report
) -> Manifest:
    """Write the trained weights and their averages, and score them; returns the manifest, which is not yet
    written."""
    device = next(start.model.parameters()).device
    content = write_model(directory, start)
    metrics = score_written(directory, start.splits, recipe, world, report)
    averages = trajectory.finish(
        refresher(start.model, ImageExamples(start.splits.train, start.settings), recipe, device=device),
        lambda written: score_written(written, start.splits, recipe, world, report, name=written.name),
    )
    return Manifest(
        command="finetune",
        recipe=recipe_to_json(recipe),
        inputs=trajectory.inputs,
        outputs=describe_outputs(directory, content),
        metrics=metrics,
        notes=_notes(start, recipe) | ({"averages": averages} if averages else {}),
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


def trajectory_of(
    directory: Path,
    start: Start,
    recipe: Finetune,
    averages: Mapping[str, Averaging],
    inputs: list[Json],
    *,
    chosen: JsonView = MappingProxyType({}),
) -> Trajectory:
    """What a run writes beside its last weights, into `directory`; chosen: notes on what chose among them."""
    return Trajectory(
        directory,
        saved(start.model),
        recipe,
        averages,
        write_config=lambda into: write_config_of(into, start),
        file_name=file_name_of(start),
        inputs=inputs,
        fitted={"data": start.splits.description, **chosen},
        updates_per_epoch=num_batches(len(start.splits.train), recipe.batch_size),
    )


def _notes(start: Start, recipe: Finetune) -> Json:
    return {
        "hyper_parameters": {name: getattr(recipe, name) for name in HYPER_PARAMETERS},
        "data": start.splits.description,
        "images": start.settings.to_json(),
    }


def _show_plan(start: Start, recipe: Finetune, report: Report) -> Json:
    """What --dry-run prints: everything is checked by now, nothing is trained or written."""
    values = {
        "model": f"{start.spec.library}:{start.spec.name}",
        "base": start.base.reference if start.base else "random weights",
        "parameters": sum(parameter.numel() for parameter in saved(start.model).parameters()),
        "training examples": len(start.splits.train),
        "bytes to write": model_bytes(saved(start.model)) * num_written(recipe),
        **{name.replace("_", " "): getattr(recipe, name) for name in HYPER_PARAMETERS},
    }
    return tell_plan(values, report, nothing="was trained")
