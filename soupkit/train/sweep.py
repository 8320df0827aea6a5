"""A sweep as data: its runs, whether each is finished, and what the sweep directory says of them."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.output import remove_litter
from soupkit.errors import OutputError, RecipeError, SoupkitError
from soupkit.events import Cell, Table
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.train import Finetune, FinetuneSweep
from soupkit.train.draws import HYPER_PARAMETERS, Settings, draw_settings, varying

COMMAND = "finetune-sweep"
LOCK_NAME = ".soupkit-lock"
WITHOUT_EFFECT = ("base", "out", "overwrite", "dry_run", "download", "workers", "device", "threads")
"""Options that do not change a run's weights; the base counts by its content."""


@dataclass(frozen=True)
class Run:
    """One member of a sweep: its folder's name, its hyper-parameters, and the recipe that trains it."""

    name: str
    settings: Settings
    recipe: Finetune


def plan_runs(recipe: FinetuneSweep) -> list[Run]:
    """Every run of the sweep, drawn and checked. Raises RecipeError, naming the run where one is at fault."""
    own = {field.name for field in dataclasses.fields(Finetune)} - {*HYPER_PARAMETERS, "threads"}
    shared = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe) if field.name in own}
    return [_run(f"run-{i:03d}", settings, shared) for i, settings in enumerate(draw_settings(recipe))]


def _run(name: str, settings: Settings, shared: dict[str, Any]) -> Run:
    values: dict[str, Any] = shared | settings | {"out": shared["out"] / name, "threads": 1}
    try:
        return Run(name, settings, Finetune(**values))
    except RecipeError as error:
        raise RecipeError(f"{name}: {error.message}", hint=error.hint) from error


@contextmanager
def opened(out: Path) -> Iterator[None]:
    """Hold the sweep directory: made if need be, locked against another sweep, freed of what a killed one left.

    Raises OutputError when it is in use, or holds something that is no sweep.
    """
    _check_is_sweep(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}", hint="choose another --out") from error
    try:
        _lock(lock, out)
        for path in out.glob(f".{MANIFEST_NAME}.*"):
            path.unlink()
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise OutputError(
            f"{out}: another sweep is running in this directory", hint="wait for it, end it, or choose another --out"
        ) from None


def _check_is_sweep(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f"{out}: exists and is not a directory", hint="choose another --out")
    manifest = Manifest.read_if_any(out)
    if manifest is not None and manifest.command != COMMAND:
        raise OutputError(f"{out}: holds the output of soupkit {manifest.command}", hint="choose another --out")
    if manifest is None and any(not path.name.startswith(".") for path in out.iterdir()):
        raise OutputError(f"{out}: exists and is no sweep (no {MANIFEST_NAME})", hint="choose another --out")


def remove_unfinished(runs: Sequence[Run]) -> None:
    """Remove the temporary directories that a killed worker left."""
    for run in runs:
        remove_litter(run.recipe.out)


def finished(run: Run, base_content: str, *, overwrite: bool) -> Manifest | None:
    """The manifest of `run` if it was trained as its recipe says from this base, None if it is to be trained.

    Raises OutputError for a directory that holds another run, CheckpointError for one whose weights are damaged, unless
    `overwrite` says to train them again.
    """
    out = run.recipe.out
    if not out.exists():
        return None
    manifest = Manifest.read_if_any(out)
    if manifest is None:
        raise OutputError(f"{out}: exists and has no {MANIFEST_NAME}", hint="remove it, or choose another --out")
    changes = differences(run, manifest, base_content)
    if overwrite and (changes or not _has_weights(out)):
        return None
    if changes:
        raise OutputError(
            f"{out} was trained with another recipe: {'; '.join(changes)}",
            hint="choose another --out, or train what differs again with --overwrite",
        )
    Checkpoint(out)  # raises: a run without its weights is no run
    return manifest


def _has_weights(directory: Path) -> bool:
    try:
        return len(Checkpoint(directory)) > 0
    except SoupkitError:
        return False


def differences(run: Run, manifest: Manifest, base_content: str) -> list[str]:
    """What `run` wants that the finished run was not trained with, in words."""
    wanted, was = json.loads(json.dumps(recipe_to_json(run.recipe))), manifest.recipe
    keys = [key for key in wanted if key not in WITHOUT_EFFECT and was.get(key) != wanted[key]]
    changes = [f"{key} was {was.get(key)}, is now {wanted[key]}" for key in keys]
    if [entry.get("content") for entry in manifest.inputs] != [base_content]:
        changes.append("the weights of the base are others")
    return changes


def write_sweep(recipe: FinetuneSweep, runs: Sequence[Run], done: dict[str, Manifest]) -> Manifest:
    """Write the sweep's own manifest, atomically: members are the runs that are finished by now."""
    members = [run for run in runs if run.name in done]
    manifest = Manifest(
        command=COMMAND,
        recipe=recipe_to_json(recipe),
        inputs=[_seen_from_sweep(entry) for run in members[:1] for entry in done[run.name].inputs],
        metrics={run.name: done[run.name].metrics for run in members},
        notes={
            "members": [run.name for run in members],
            "hyper_parameters": {run.name: run.settings for run in members},
        },
    )
    manifest.write(recipe.out)
    return manifest


def _seen_from_sweep(entry: dict[str, Any]) -> dict[str, Any]:
    """A run's record of its base, with the path relative to the sweep instead of the run."""
    return entry | {"path": os.path.normpath(Path("run", entry["path"]))}


def settings_table(runs: Sequence[Run]) -> Table:
    """The drawn hyper-parameters of every run."""
    rows = tuple((run.name, *(_short(run.settings[name]) for name in HYPER_PARAMETERS)) for run in runs)
    return Table("runs", ("run", *HYPER_PARAMETERS), rows)


def leaderboard(runs: Sequence[Run], done: dict[str, Manifest]) -> Table:
    """The members, best on held-out first, with the hyper-parameters that vary."""
    names = varying([run.settings for run in runs])
    rows = [(run, done[run.name].metrics) for run in runs if run.name in done]
    rows.sort(key=lambda row: -(_metric(row[1], "held_out", "value") or 0))
    cells: list[tuple[Cell, ...]] = [
        (
            run.name,
            *(_metric(metrics, "held_out", part) for part in ("value", "standard_error")),
            _metric(metrics, "test", "value"),
            *(_short(run.settings[name]) for name in names),
        )
        for run, metrics in rows
    ]
    columns = ("run", "held-out top-1", "±", "test top-1", *names)
    return Table("leaderboard", columns, tuple(cells), "held-out chooses; test only reports")


def _metric(metrics: dict[str, Any], split: str, part: str) -> float | None:
    value = metrics.get(split, {}).get("top1", {}).get(part)
    return None if value is None else round(float(value), 4)


def _short(value: Cell) -> Cell:
    return float(f"{value:.3g}") if isinstance(value, float) else value
