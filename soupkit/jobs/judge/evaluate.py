"""`evaluate`: score checkpoints on data that did not fit them, and compare them in pairs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.quantized import refuse_quantized
from soupkit.checkpoint.reference import open_checkpoint, open_references
from soupkit.errors import RecipeError
from soupkit.events import Advanced, Finished, Report, Scored, Started, Table, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.metrics import metric_of
from soupkit.recipe.evaluate import Evaluate
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.tables import split_label, with_error
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.outputs.findings import write_findings, write_scores
from soupkit.task.external import CommandScorer
from soupkit.task.images.metrics import direction_of, ensemble
from soupkit.task.images.models import describe
from soupkit.task.images.task import ImageTask, open_task
from soupkit.task.score import Comparison, Predictions, Score, compare, scores_of, scores_to_json
from soupkit.task.task import Role, Task
from soupkit.world import World

Metrics = Mapping[str, Score]
EXTERNAL = "external"


@dataclass(frozen=True)
class Row:
    """One model on one split: its scores, and how it differs from the baseline."""

    name: str
    scores: Metrics
    comparison: Comparison | None = None


def evaluate(recipe: Evaluate, world: World, report: Report) -> Json:
    """Score every checkpoint on held-out and test, or by an external program; returns the manifest.

    Its metrics are {split: {metric: …}} of a single checkpoint, {name: {split: {metric: …}}} of several; its
    notes hold the comparisons. With `out`, scores.json, scores.csv and the manifest are written there.
    Raises RecipeError, TaskError before anything is scored for whatever can be known then.
    """
    checkpoints, baseline = _with_baseline(recipe)
    inputs = [file for checkpoint in checkpoints for file in checkpoint.files]
    output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, inputs=inputs) if recipe.out else None
    names = [checkpoint.reference for checkpoint in checkpoints]
    if recipe.score_command:
        results, data = {EXTERNAL: world.in_main(lambda: _score_outside(checkpoints, recipe, report))}, None
    else:
        direction_of(metric_of(recipe))
        results, data = _score_inside(checkpoints, baseline, recipe, world, report)
    for split, rows in results.items():
        report(_table(split, rows, recipe))
    notes = {"baseline": names[baseline], "data": data, "comparisons": _comparisons(results)}
    manifest = Manifest(
        command="evaluate",
        recipe=recipe_to_json(recipe),
        inputs=[{"reference": name} for name in names],
        metrics=_metrics(results),
        notes=notes,
    )
    if output is not None:
        manifest = world.in_main(lambda: _write(output, manifest, checkpoints, results, world))
        report(Wrote(output.out, sum(entry["bytes"] for entry in manifest.outputs["files"].values())))
    return manifest.to_json()


def _with_baseline(recipe: Evaluate) -> tuple[list[Checkpoint], int]:
    """The checkpoints to score, and which of them is the baseline; one that is not among them is put
    first."""
    checkpoints = open_references(recipe.refs)
    if recipe.baseline is None:
        return checkpoints, 0
    baseline = open_checkpoint(recipe.baseline)
    for number, checkpoint in enumerate(checkpoints):
        if checkpoint.path.resolve() == baseline.path.resolve():
            return checkpoints, number
    return [baseline, *checkpoints], 0


def _score_inside(
    checkpoints: Sequence[Checkpoint], baseline: int, recipe: Evaluate, world: World, report: Report
) -> tuple[dict[str, list[Row]], Json]:
    """Rows per split, the baseline's predictions kept for comparison, all of them only for an ensemble."""
    refuse_quantized(checkpoints)
    task = open_task(checkpoints[baseline], recipe, world)
    splits = task.splits
    roles: list[Role] = ["held_out", "test"] if recipe.split == "both" else [recipe.split]
    check_seen(checkpoints, splits, recipe, report, *roles, selects=False)
    kept: dict[Role, list[Predictions]] = {role: [] for role in roles}
    reference: dict[Role, Predictions] = {}
    rows: dict[Role, dict[int, Row]] = {role: {} for role in roles}
    order = [baseline, *(number for number in range(len(checkpoints)) if number != baseline)]
    report(Started("evaluating", len(checkpoints), "checkpoints"))
    for number in order:
        checkpoint = checkpoints[number]
        task = _load(checkpoint, task, recipe, world)
        for role in roles:
            predictions = task.predict(task.split(role))
            rows[role][number] = _row(checkpoint.reference, predictions, reference.get(role), recipe, task)
            report(_scored(role, rows[role][number], metric_of(recipe)))
            reference.setdefault(role, predictions)
            kept[role] += [predictions] if recipe.ensemble != "none" else []
        report(Advanced("evaluating", note=checkpoint.reference))
    report(Finished("evaluating"))
    results = {role: [rows[role][number] for number in range(len(checkpoints))] for role in roles}
    if recipe.ensemble != "none":
        for role in roles:
            mixed = ensemble(kept[role], recipe.ensemble)
            results[role].append(_row(f"ensemble of {recipe.ensemble}", mixed, reference[role], recipe, task))
    return {str(role): found for role, found in results.items()}, splits.description


def _load(checkpoint: Checkpoint, task: ImageTask, recipe: Evaluate, world: World) -> ImageTask:
    """The task with this checkpoint's weights; another architecture gets a model of its own, and the same
    data."""
    if describe(checkpoint, recipe.model) != task.spec:
        return open_task(checkpoint, recipe, world, splits=task.splits)
    task.load(checkpoint)
    return task


def _row(
    name: str, predictions: Predictions, reference: Predictions | None, recipe: Evaluate, task: Task
) -> Row:
    metric = metric_of(recipe)
    comparison = compare(predictions, reference, task.metrics[metric]) if reference is not None else None
    scores = scores_of(predictions, task.metrics)
    if metric not in scores:
        raise RecipeError(f"metric is {metric!r}, expected one of {', '.join(scores)} for these data")
    return Row(name, scores, comparison)


def _score_outside(checkpoints: Sequence[Checkpoint], recipe: Evaluate, report: Report) -> list[Row]:
    assert recipe.score_command is not None
    if recipe.ensemble != "none":
        raise RecipeError(
            "an ensemble needs soupkit's own predictions", hint="leave --ensemble or --score-command out"
        )
    direction = "max" if recipe.direction == "auto" else recipe.direction
    scorer = CommandScorer(
        recipe.score_command, metric=recipe.metric, direction=direction, timeout=recipe.score_timeout
    )
    rows = []
    report(Started("evaluating", len(checkpoints), "checkpoints"))
    for checkpoint in checkpoints:
        rows.append(Row(checkpoint.reference, {scorer.name: scorer.score(checkpoint.fetch())}))
        report(_scored(EXTERNAL, rows[-1], scorer.name))
        report(Advanced("evaluating", note=checkpoint.reference))
    report(Finished("evaluating"))
    return rows


def _scored(split: str, row: Row, metric: str) -> Scored:
    score = row.scores[metric]
    return Scored(row.name, metric, score.value, score.standard_error, score.num_examples, split_label(split))


def _table(split: str, rows: Sequence[Row], recipe: Evaluate) -> Table:
    metrics = list(rows[0].scores)
    compared = any(row.comparison for row in rows)
    columns = (
        "checkpoint",
        *metrics,
        *((f"Δ {metric_of(recipe)}", "95 % interval", "p") if compared else ()),
    )
    num = rows[0].scores[metrics[0]].num_examples
    title = split_label(split) + (f", n = {num}" if num else "")
    caption = (
        "± is one standard error; Δ and p are paired with the baseline's predictions" if compared else ""
    )
    return Table(title, columns, tuple(_cells(row, compared=compared) for row in rows), caption)


def _cells(row: Row, *, compared: bool) -> tuple[str | float | None, ...]:
    values = [with_error(score.value, score.standard_error) for score in row.scores.values()]
    if not compared:
        return (row.name, *values)
    c = row.comparison
    difference = (
        ("baseline", "", None)
        if c is None
        else (f"{c.difference:+.4f}", f"{c.low:+.4f} … {c.high:+.4f}", c.p_value)
    )
    return (row.name, *values, *difference)


def _metrics(results: Mapping[str, Sequence[Row]]) -> Json:
    by_name: Json = {}
    for split, rows in results.items():
        for row in rows:
            by_name.setdefault(row.name, {})[split] = scores_to_json(row.scores)
    return next(iter(by_name.values())) if len(by_name) == 1 else by_name


def _comparisons(results: Mapping[str, Sequence[Row]]) -> Json:
    return {
        split: {row.name: row.comparison.to_json() for row in rows if row.comparison is not None}
        for split, rows in results.items()
    }


def _write(
    output: OutputDirectory,
    manifest: Manifest,
    checkpoints: Sequence[Checkpoint],
    results: Mapping[str, Sequence[Row]],
    world: World,
) -> Manifest:
    """scores.json, scores.csv and the manifest, which then also knows the inputs by content."""
    contents = [content_hash(checkpoint, threads=world.num_threads) for checkpoint in checkpoints]
    with output as directory:
        write_scores(directory, manifest)
        _write_csv(directory / "scores.csv", results)
        return write_findings(directory, manifest, describe_inputs(checkpoints, output.out, contents))


def _write_csv(path: Path, results: Mapping[str, Sequence[Row]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ("checkpoint", "split", "metric", "value", "standard_error", "num_examples")
        writer.writerow((*head, "difference", "low", "high", "p_value"))
        for split, rows in results.items():
            for row in rows:
                for metric, score in row.scores.items():
                    c = row.comparison if row.comparison and row.comparison.metric == metric else None
                    paired = (c.difference, c.low, c.high, c.p_value) if c else ("", "", "", "")
                    cells = (score.value, score.standard_error, score.num_examples)
                    writer.writerow((row.name, split, metric, *cells, *paired))
