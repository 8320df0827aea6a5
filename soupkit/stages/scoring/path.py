"""Points along a path: scored, told, written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from soupkit.asked import ScoresPoints
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.curve.curve import Curve
from soupkit.curve.geometry import Geometry, Matrix, geometry, weight_names
from soupkit.curve.summary import MEASURES, Scored, fields, measured, metrics
from soupkit.events import Cell, Report, Table, Wrote
from soupkit.jsons import Json, JsonView
from soupkit.manifest import Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.curves import path_plot
from soupkit.report.tables import score_cell, split_label, tell_plan
from soupkit.stages.inputs.agreed import agreed
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.outputs.findings import write_findings
from soupkit.stages.scoring.points import Point, PointScorer, score_points
from soupkit.task.images.data import open_data
from soupkit.world import World


def evaluate_path(
    curve: Curve,
    bends: Sequence[Checkpoint],
    recipe: ScoresPoints,
    world: World,
    report: Report,
    *,
    ts: Sequence[float],
    weight_decay: float,
    command: str,
    title: str,
    corners: Sequence[float] = (),
) -> Json:
    """Score a path at `ts` and write what was found; every rank returns the manifest, rank 0 writes.

    weight_decay: for the L2 term of the loss. corners: values of t that the plot marks.
    """
    inputs = [file for bend in bends for file in bend.files]
    output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, inputs=inputs) if world.is_main else None
    slots = agreed(bends, recipe, report).slots
    coefficients = np.stack([curve.coefficients(t) for t in ts])
    if recipe.dry_run:
        return show_plan(bends, coefficients, recipe, world, report)
    if recipe.data is not None:
        check_seen(bends, open_data(recipe), recipe, report, selects=False)
    scored = score_points(bends, coefficients, recipe, world, report)
    found = geometry(bends, [name for name in weight_names(bends[0]) if name in slots])
    path = scored_path(ts, coefficients, scored, found, weight_decay=weight_decay)
    report(path_table(path, title))
    manifest = Manifest(
        command=command,
        recipe=recipe_to_json(recipe),
        inputs=describe_inputs(
            bends, recipe.out, [content_hash(bend, threads=world.num_threads) for bend in bends]
        ),
        metrics=metrics(path),
        notes={
            "curve": curve.to_json(),
            "length": path.length,
            "weight_decay": weight_decay,
            "num_points": len(ts),
        },
    )
    if output is None:
        return manifest.to_json()
    with output as directory:
        np.savez(directory / "curve.npz", **fields(path))
        _write_json(directory / "curve.json", fields(path))
        path_plot(directory / "curve.png", path.ts, _panels(path), title=title, marks=corners)
        manifest = write_findings(directory, manifest)
    report(Wrote(recipe.out, sum(entry["bytes"] for entry in manifest.outputs["files"].values())))
    return manifest.to_json()


def scored_path(
    ts: Sequence[float],
    coefficients: Matrix,
    scored: Sequence[Point],
    found: Geometry,
    *,
    weight_decay: float,
) -> Scored:
    """Everything that is known of a path: distances and the L2 term come from inner products of the bends
    alone."""
    penalties = np.array([0.5 * weight_decay * found.squared_norm(row) for row in coefficients])
    splits = {split: measured(scored, split, penalties) for split in scored[0]}
    return Scored(np.asarray(ts, np.float64), found.steps(coefficients), splits)


def path_table(path: Scored, title: str) -> Table:
    """The table of the paper: ends, extremes and means of every measure on every split."""
    rows: list[tuple[Cell, ...]] = []
    for split, entries in metrics(path).items():
        for measure in MEASURES:
            named = {
                name: entries[f"{measure}_{name}"] for name in ("start", "end", "min", "max", "avg", "int")
            }
            cells = tuple(score_cell(entry, significant=True) for entry in named.values())
            unit = f"{measure}, %" if measure == "err" else measure
            rows.append((split_label(split), unit, *cells, named["max"]["num_examples"]))
    columns = ("split", "measure", "start", "end", "min", "max", "avg", "int", "n")
    caption = f"length {path.length:.4g}; ± is one standard error over the examples of that point"
    return Table(f"{title}: {len(path.ts)} points", columns, tuple(rows), caption)


def show_plan(
    checkpoints: Sequence[Checkpoint],
    coefficients: Matrix,
    recipe: ScoresPoints,
    world: World,
    report: Report,
) -> Json:
    """What --dry-run prints: checkpoints, model and data fit each other, and nothing was scored."""
    scorer = PointScorer(checkpoints, recipe, world)
    values: dict[str, Cell] = {
        "checkpoints": len(checkpoints),
        "points": len(coefficients),
        "parameters": sum(spec.num_elements for spec in checkpoints[0].specs.values()),
        "data": recipe.data,
        **{f"{split} examples": len(getattr(scorer.task, split)) for split in scorer.splits},
        "batch norm": recipe.bn,
    }
    return tell_plan(values, report, nothing="was scored")


def _panels(path: Scored) -> Json:
    splits = path.splits.items()
    return {
        "loss": {split: (each.loss, each.nll_error) for split, each in splits},
        "error, %": {split: (each.err, each.err_error) for split, each in splits},
    }


def _write_json(path: Path, values: JsonView) -> None:
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()}
    path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
