"""`barrier`: how much worse the line between two checkpoints is than its ends: naive, aligned, aligned and
repaired."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soupkit.align.repair import measure_endpoints, repair
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.quantized import refuse_quantized
from soupkit.checkpoint.reference import open_references
from soupkit.checkpoint.source import Source
from soupkit.curve.barrier import Barrier, barrier
from soupkit.errors import RecipeError
from soupkit.events import Advanced, Cell, Finished, Report, Started, Table, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.merge.mixture import Mixture, interpolate
from soupkit.merge.writer import StreamOptions
from soupkit.recipe.align import Barrier as BarrierRecipe
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.plots import compare_lines
from soupkit.report.tables import split_label, with_error
from soupkit.stages.alignment.turn import aligned_ingredients, check_alignable
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.outputs.findings import write_findings
from soupkit.stages.scoring.points import PointModel
from soupkit.stages.scoring.scoring import predict, training_batches
from soupkit.task.batch_norm import refresh
from soupkit.task.images.metrics import errors_of, losses_of
from soupkit.task.images.task import open_task
from soupkit.task.score import share_error
from soupkit.task.task import Task
from soupkit.world import World

REPAIRED = "repaired"
Change = Callable[[Mixture], object]
"""What is done to the model at a point before it is scored."""


@dataclass(frozen=True)
class Line:
    """The scores along one line: loss in nats and error (0 or 1) of every example at every point, float64[P,
    N]."""

    losses: np.ndarray
    errors: np.ndarray
    at: Sequence[float]

    @property
    def barriers(self) -> dict[str, Barrier]:
        """The barrier of the loss and of the error."""
        return {"nll": barrier(self.losses, self.at), "error": barrier(self.errors, self.at, shares=True)}

    def points(self) -> list[dict[str, float]]:
        """Mean and standard error of both at every point."""
        n = self.losses.shape[1]
        rows = zip(self.at, self.losses, self.errors, strict=True)
        return [
            {
                "at": at,
                "nll": float(losses.mean()),
                "nll_standard_error": float(losses.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0,
                "top1": float(1 - errors.mean()),
                "top1_standard_error": share_error(float(errors.mean() * (1 - errors.mean())), n),
            }
            for at, losses, errors in rows
        ]


def barrier_job(recipe: BarrierRecipe, world: World, report: Report) -> Json:
    """Score the lines; returns the manifest, and writes it with tables and the plot where `out` is given.

    The repaired line is repaired at every point but its ends, whether its loss falls or not: it is a
    measurement. Memory: both checkpoints. Raises AlignError, TaskError, CompatibilityError before anything is
    scored.
    """
    checkpoints = open_references(recipe.refs)
    if len(checkpoints) != 2:
        raise RecipeError(f"refs name {len(checkpoints)} checkpoints, expected two")
    refuse_quantized(checkpoints)
    check_alignable(checkpoints, recipe, report)
    files = [file for checkpoint in checkpoints for file in checkpoint.files]
    output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, inputs=files) if recipe.out else None
    task = open_task(checkpoints[0], recipe, world)
    check_seen(checkpoints, task.splits, recipe, report, selects=False)
    aligned = aligned_ingredients(checkpoints, to=0, recipe=recipe, world=world, report=report)
    lines = _lines(checkpoints, aligned.views, task, recipe, report)
    report(_table(lines, recipe))
    num = next(iter(lines.values())).losses.shape[1]
    manifest = Manifest(
        command="barrier",
        recipe=recipe_to_json(recipe),
        inputs=[{"reference": checkpoint.reference} for checkpoint in checkpoints],
        metrics={name: {recipe.split: _metrics(line, num)} for name, line in lines.items()},
        notes={
            "barriers": {
                name: {k: b.to_json() for k, b in line.barriers.items()} for name, line in lines.items()
            },
            "points": {name: line.points() for name, line in lines.items()},
            "alignment": aligned.notes,
            "data": task.splits.description,
        },
    )
    if output is not None:
        manifest = _write(output, manifest, lines, checkpoints, world)
        report(Wrote(output.out, sum(entry["bytes"] for entry in manifest.outputs["files"].values())))
    return manifest.to_json()


def _lines(
    checkpoints: Sequence[Source], views: Sequence[Source], task: Task, recipe: BarrierRecipe, report: Report
) -> dict[str, Line]:
    at = np.linspace(0, 1, recipe.num_points).tolist()
    batches = training_batches(task, recipe, num_batches=recipe.num_batches)
    plain = (lambda _: refresh(task.model, batches(), task.outputs)) if recipe.bn == "refresh" else None
    ends: dict[str, tuple[Sequence[Source], Change | None]] = {
        "naive": (checkpoints, plain),
        "aligned": (views, plain),
    }
    if recipe.repair != "off":
        ends[REPAIRED] = (views, _repairing(views, task, recipe))
    report(Started("barrier", len(ends) * len(at), "points"))
    lines = {
        name: _score(pair, task, recipe, report, at=at, change=change)
        for name, (pair, change) in ends.items()
    }
    report(Finished("barrier"))
    return lines


def _repairing(views: Sequence[Source], task: Task, recipe: BarrierRecipe) -> Change:
    kind, batches = recipe.repair, training_batches(task, recipe, num_batches=recipe.num_batches)
    assert kind != "off"
    endpoints = measure_endpoints(task, views, kind=kind, batches=batches)

    def change(mixture: Mixture) -> None:
        repair(task, endpoints, mixture.matrix[:, 0].tolist(), kind=kind, batches=batches)

    return change


def _score(
    pair: Sequence[Source],
    task: Task,
    recipe: BarrierRecipe,
    report: Report,
    *,
    at: Sequence[float],
    change: Change | None,
) -> Line:
    """Losses and errors at every point of one line; what is no number in the weights is scored as it is."""
    options = StreamOptions(integers="first", non_finite="keep", threads=recipe.threads)
    model = PointModel(task, pair, check_compatible(pair, mismatch="warn"), options=options, change=change)
    scored = []
    for point in at:
        model.load(interpolate("a", "b", point))
        said = predict(task, recipe.split)
        scored.append([each(said.outputs, said.targets) for each in (losses_of, errors_of)])
        report(Advanced("barrier"))
    losses, errors = zip(*scored, strict=True)
    return Line(np.stack(losses), np.stack(errors), at)


def _metrics(line: Line, num: int) -> Json:
    """The barriers as a manifest holds metrics, so that a recipe can expect them."""
    return {
        f"{name}_barrier": {
            "value": found.height,
            "standard_error": found.standard_error,
            "num_examples": num,
        }
        for name, found in line.barriers.items()
    }


def _table(lines: Mapping[str, Line], recipe: BarrierRecipe) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, line in lines.items():
        loss, error = line.barriers["nll"], line.barriers["error"]
        middle = line.points()[len(line.at) // 2]
        cells = (with_error(found.height, found.standard_error) for found in (loss, error))
        top1 = with_error(middle["top1"], middle["top1_standard_error"])
        rows.append((name, *cells, loss.at, top1))
    num = next(iter(lines.values())).losses.shape[1]
    title = f"barrier on {split_label(recipe.split)}, n = {num}"
    caption = (
        "excess over the line between the ends, at its highest point; ± is one standard error "
        "over the examples"
    )
    columns = ("line", "loss barrier", "error barrier", "highest at", "top1 in the middle")
    return Table(title, columns, tuple(rows), caption)


def _write(
    output: OutputDirectory,
    manifest: Manifest,
    lines: Mapping[str, Line],
    checkpoints: Sequence[Source],
    world: World,
) -> Manifest:
    contents = [content_hash(checkpoint, threads=world.num_threads) for checkpoint in checkpoints]
    with output as directory:
        text = json.dumps({key: manifest.notes[key] for key in ("barriers", "points")}, indent=1)
        (directory / "barrier.json").write_text(text + "\n", encoding="utf-8")
        _write_csv(directory / "barrier.csv", lines)
        for metric, label in (("nll", "loss (nats)"), ("top1", "top-1")):
            curves = {
                name: [(p["at"], p[metric], p[f"{metric}_standard_error"]) for p in line.points()]
                for name, line in lines.items()
            }
            compare_lines(
                directory / f"barrier-{metric}.png",
                curves,
                title="between the checkpoints",
                xlabel="λ",
                ylabel=label,
            )
        return write_findings(directory, manifest, describe_inputs(checkpoints, output.out, contents))


def _write_csv(path: Path, lines: Mapping[str, Line]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        points = {name: line.points() for name, line in lines.items()}
        writer.writerow(("line", *next(iter(points.values()))[0]))
        for name, rows in points.items():
            writer.writerows((name, *row.values()) for row in rows)
