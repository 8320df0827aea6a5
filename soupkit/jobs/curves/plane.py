"""`plane`: loss and error on the plane through three checkpoints.

Shape suffixes: X points along x, Y along y, C points of a curve.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import open_references
from soupkit.curve.curve import Curve, points
from soupkit.curve.geometry import Geometry, Matrix, Plane, geometry, weight_names
from soupkit.curve.summary import PREFIXES, measured
from soupkit.errors import RecipeError, ReferenceError
from soupkit.events import Cell, Report, Table, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.recipe.curve import Plane as PlaneRecipe
from soupkit.recipe.parse import recipe_to_json
from soupkit.report.curves import plane_plot
from soupkit.report.tables import score_cell, split_label
from soupkit.stages.inputs.agreed import agreed
from soupkit.stages.inputs.curve import open_curve
from soupkit.stages.inputs.seen import check_seen
from soupkit.stages.outputs.described import describe_inputs
from soupkit.stages.outputs.findings import write_findings
from soupkit.stages.scoring.path import show_plan
from soupkit.stages.scoring.points import Point, score_points
from soupkit.task.images.data import open_data
from soupkit.world import World

CURVE_POINTS = 61


@dataclass(frozen=True)
class _Map:
    """The plane, its grid, the coefficients of every grid point float64[Y·X, 3], and where things lie in
    it."""

    plane: Plane
    xs: Matrix
    ys: Matrix
    coefficients: Matrix
    found: Geometry
    corners: Matrix
    curve: Matrix | None


def plane(recipe: PlaneRecipe, world: World, report: Report) -> Json:
    """Score the grid and write plane.npz, plane.json and plane.png; every rank returns the manifest, rank 0
    writes.

    Raises RecipeError and CompatibilityError before anything is scored.
    """
    checkpoints, projected = _open(recipe)
    inputs = [file for checkpoint in [*checkpoints, *projected] for file in checkpoint.files]
    output = OutputDirectory(recipe.out, overwrite=recipe.overwrite, inputs=inputs) if world.is_main else None
    slots = agreed(checkpoints, recipe, report).slots
    found = geometry(
        [*checkpoints, *projected], [name for name in weight_names(checkpoints[0]) if name in slots]
    )
    drawn = _lay_out(recipe, found)
    if recipe.dry_run:
        return show_plan(checkpoints, drawn.coefficients, recipe, world, report)
    if recipe.data is not None:
        check_seen(checkpoints, open_data(recipe), recipe, report, selects=False)
    scored = score_points(checkpoints, drawn.coefficients, recipe, world, report)
    values = _values(scored, drawn, recipe)
    projections = _projections(drawn, projected)
    least = _metrics(values, scored)
    report(_table(values, least, drawn, projections))
    contents = [
        content_hash(checkpoint, threads=world.num_threads) for checkpoint in [*checkpoints, *projected]
    ]
    manifest = Manifest(
        command="plane",
        recipe=recipe_to_json(recipe),
        inputs=describe_inputs([*checkpoints, *projected], recipe.out, contents),
        metrics=least,
        notes={"corners": drawn.corners.tolist(), "projections": projections},
    )
    if output is None:
        return manifest.to_json()
    with output as directory:
        _write(directory, values, drawn, projections, checkpoints, recipe)
        manifest = write_findings(directory, manifest)
    report(Wrote(recipe.out, sum(entry["bytes"] for entry in manifest.outputs["files"].values())))
    return manifest.to_json()


def _open(recipe: PlaneRecipe) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """The three checkpoints, or the bends of a curve, and those that are projected."""
    checkpoints = open_references(recipe.refs)
    if len(checkpoints) != 3:
        raise RecipeError(
            f"refs name {len(checkpoints)} checkpoints, expected three, or a curve of three bends"
        )
    projected = open_references(recipe.project) if recipe.project else []
    distinct = {checkpoint.path.resolve() for checkpoint in checkpoints}
    projected = [checkpoint for checkpoint in projected if checkpoint.path.resolve() not in distinct]
    check_compatible([*checkpoints, *projected], mismatch=recipe.mismatch)
    return checkpoints, projected


def _lay_out(recipe: PlaneRecipe, found: Geometry) -> _Map:
    """The grid over the checkpoints and projections, and the curve where there is one."""
    plane = Plane.through(found)
    projected = [plane.project(row[1:3]) for row in found.gram[3:]]
    xs, ys = plane.grid(recipe.num_points, recipe.margin, others=projected)
    coefficients = np.stack([plane.coefficients(x, y) for y in ys for x in xs])
    curve = _curve_of(recipe)
    line = None
    if curve is not None:
        line = np.array([plane.place(curve.coefficients(t)) for t in points(CURVE_POINTS)])
    return _Map(plane, xs, ys, coefficients, found, np.array([plane.place(row) for row in np.eye(3)]), line)


def _curve_of(recipe: PlaneRecipe) -> Curve | None:
    """The curve, when the plane is one's."""
    if len(recipe.refs) != 1:
        return None
    try:
        return open_curve(recipe.refs[0])[0]
    except ReferenceError:
        return None


def _values(scored: Sequence[Point], drawn: _Map, recipe: PlaneRecipe) -> dict[str, dict[str, Matrix]]:
    """{split: {measure: float64[Y, X]}}; errors in percent."""
    inner = dataclasses.replace(drawn.found, gram=drawn.found.gram[:3, :3], pull=drawn.found.pull[:3])
    penalties = np.array([0.5 * recipe.weight_decay * inner.squared_norm(row) for row in drawn.coefficients])
    shape = (len(drawn.ys), len(drawn.xs))
    values = {}
    for split in scored[0]:
        each = measured(scored, split, penalties)
        values[split] = {name: getattr(each, name).reshape(shape) for name in ("loss", "nll", "err")}
    return values


def _projections(drawn: _Map, projected: Sequence[Checkpoint]) -> dict[str, dict[str, float]]:
    """{name: {x, y, distance}}: the nearest point of the plane to each checkpoint, and how far it is."""
    found = {}
    for k, checkpoint in enumerate(projected, start=3):
        x, y = drawn.plane.project(drawn.found.gram[k, 1:3])
        rest = max(0.0, float(drawn.found.gram[k, k]) - x**2 - y**2)
        found[checkpoint.reference] = {"x": x, "y": y, "distance": rest**0.5}
    return found


def _metrics(values: dict[str, dict[str, Matrix]], scored: Sequence[Point]) -> Json:
    """The least of every measure on every split, as a manifest holds metrics."""
    found: Json = {}
    for split, measures in values.items():
        found[split] = {}
        for measure, grid in measures.items():
            point = scored[int(grid.argmin())][split]["top1" if measure == "err" else "nll"]
            error = point["standard_error"] * (100 if measure == "err" else 1)
            entry = {
                "value": float(grid.min()),
                "standard_error": error,
                "num_examples": point["num_examples"],
            }
            found[split][f"{measure}_min"] = entry
    return found


def _table(
    values: dict[str, dict[str, Matrix]],
    least: Json,
    drawn: _Map,
    projections: dict[str, dict[str, float]],
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for split, measures in values.items():
        for measure, grid in measures.items():
            row, column = np.unravel_index(int(grid.argmin()), grid.shape)
            place = (float(f"{drawn.xs[column]:.4g}"), float(f"{drawn.ys[row]:.4g}"))
            entry = least[split][f"{measure}_min"]
            value = score_cell(entry, significant=True)
            name = f"{measure}, %" if measure == "err" else measure
            rows.append((split_label(split), name, value, *place, float(grid.max()), entry["num_examples"]))
    away = "".join(
        f"; {name} at ({each['x']:.4g}, {each['y']:.4g}), {each['distance']:.4g} from the plane"
        for name, each in projections.items()
    )
    columns = ("split", "measure", "min", "at x", "at y", "max", "n")
    return Table("plane", columns, tuple(rows), f"± is one standard error{away}")


def _write(
    directory: Path,
    values: dict[str, dict[str, Matrix]],
    drawn: _Map,
    projections: dict[str, dict[str, float]],
    checkpoints: Sequence[Checkpoint],
    recipe: PlaneRecipe,
) -> None:
    """plane.npz, plane.json, plane.png."""
    found: Json = {"xs": drawn.xs, "ys": drawn.ys, "bend_coordinates": drawn.corners}
    for split, measures in values.items():
        found |= {f"{PREFIXES[split]}_{name}": grid for name, grid in measures.items()}
    if drawn.curve is not None:
        found["curve_coordinates"] = drawn.curve
    np.savez(directory / "plane.npz", **found)
    plain = {name: array.tolist() for name, array in found.items()} | {"projections": projections}
    (directory / "plane.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    split = "train" if "train" in values else "held_out"
    names = _short([checkpoint.reference for checkpoint in checkpoints])
    away = dict(zip(_short(list(projections)), projections.values(), strict=True))
    plane_plot(
        directory / "plane.png",
        drawn.xs,
        drawn.ys,
        {
            f"{split_label(split)} loss": (values[split]["loss"], recipe.loss_cap),
            "test error, %": (values["test"]["err"], recipe.error_cap),
        },
        points={name: tuple(place) for name, place in zip(names, drawn.corners.tolist(), strict=True)},
        projections={name: (each["x"], each["y"]) for name, each in away.items()},
        curve=drawn.curve,
        title="the plane through three checkpoints",
    )


def _short(references: Sequence[str]) -> list[str]:
    """The last parts of some references, as few as tell them apart."""
    for num in (1, 2, 3):
        names = ["/".join(Path(reference).parts[-num:]) for reference in references]
        if len(set(names)) == len(names):
            return names
    return list(references)
