"""A sweep as data: its runs, whether each is finished, and what the sweep directory says of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.output import remove_litter
from soupkit.errors import OutputError, RecipeError, SoupkitError
from soupkit.events import Cell, Table
from soupkit.jsons import Json
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.recipe.averages import AveragingOptions
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.train import Finetune, FinetuneSweep
from soupkit.train.draws import HYPER_PARAMETERS, Settings, draw_settings, varying
from soupkit.train.folder import LOCK_NAME as LOCK_NAME
from soupkit.train.folder import held

COMMAND = "finetune-sweep"
PROBE_NAME = "linear-probe"
LOWER = 0.5
"""Factor on the learning rate of a run that diverged."""
WITHOUT_EFFECT = (
    *("base", "out", "overwrite", "dry_run", "download"),
    *("workers", "device", "threads", "tensorboard", "strict_data"),
)
"""Options that do not change a run's weights; the base counts by its content."""


@dataclass(frozen=True)
class Run:
    """One member of a sweep: its folder's name, its hyper-parameters, and the recipe that trains it."""

    name: str
    settings: Settings
    recipe: Finetune

    def lowered(self, times: int) -> Finetune | None:
        """Its recipe after it diverged so many times: half the learning rate each time; None below min_lr."""
        if times == 0:
            return self.recipe
        lr = self.recipe.lr * LOWER**times
        return dataclasses.replace(self.recipe, lr=lr) if lr >= self.recipe.min_lr else None


def plan_probe(recipe: FinetuneSweep) -> Run | None:
    """The linear probe that every run starts from, where the recipe wants one (LP-FT: Kumar et al. 2022).

    arXiv:2202.10054. Made once: soups need a common start, the head included.
    """
    if not recipe.lp_epochs:
        return None
    shared = _shared(recipe) | {"snapshot_every": 0, "trainable": "head", "min_lr": 0.0}
    settings: Settings = {
        "lr": recipe.lp_lr,
        "weight_decay": 0.0,
        "epochs": recipe.lp_epochs,
        "seed": recipe.seed,
    }
    return _run(PROBE_NAME, settings, _without_averages(shared))


def plan_runs(recipe: FinetuneSweep) -> list[Run]:
    """Every run of the sweep, drawn and checked. Raises RecipeError, naming the run where one is at fault."""
    shared = _shared(recipe)
    if recipe.lp_epochs:
        shared |= {"base": str(recipe.out / PROBE_NAME), "head": None}
    return [_run(f"run-{i:03d}", settings, shared) for i, settings in enumerate(draw_settings(recipe))]


def _shared(recipe: FinetuneSweep) -> Json:
    """What every run takes from the sweep as it is."""
    own = {field.name for field in dataclasses.fields(Finetune)} - {*HYPER_PARAMETERS, "threads"}
    return {
        field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe) if field.name in own
    }


def _without_averages(shared: Json) -> Json:
    averaging = {field.name for field in dataclasses.fields(AveragingOptions)}
    return {name: value for name, value in shared.items() if name not in averaging}


def _run(name: str, settings: Settings, shared: Json) -> Run:
    values: Json = shared | settings | {"out": shared["out"] / name, "threads": 1}
    try:
        return Run(name, settings, Finetune(**values))
    except RecipeError as error:
        raise RecipeError(f"{name}: {error.message}", hint=error.hint) from error


def opened(out: Path) -> AbstractContextManager[None]:
    """Hold the sweep directory: made if need be, locked against another sweep, freed of what a killed one
    left.

    Raises OutputError when it is in use, or holds something that is no sweep.
    """
    return held(out, command=COMMAND, what="sweep")


def remove_unfinished(runs: Sequence[Run]) -> None:
    """Remove the temporary directories that a killed worker left."""
    for run in runs:
        remove_litter(run.recipe.out)


def finished(
    run: Run, base_content: str, *, overwrite: bool, lowered: int = 0, data: str | None = None
) -> Manifest | None:
    """The manifest of `run` if it was trained as its recipe says from this base, None if it is to be trained.

    lowered: how often its learning rate was lowered because it diverged. data: what the data are now. Raises
    OutputError for a directory that holds another run, CheckpointError for one whose weights are damaged,
    unless `overwrite` says to train them again.
    """
    out = run.recipe.out
    if not out.exists():
        return None
    manifest = Manifest.read_if_any(out)
    if manifest is None:
        raise OutputError(
            f"{out}: exists and has no {MANIFEST_NAME}", hint="remove it, or choose another --out"
        )
    recipes = [recipe for recipe in (run.recipe, run.lowered(lowered)) if recipe]
    changes = min((differences(recipe, manifest, base_content) for recipe in recipes), key=len)
    if data is not None and manifest.given.get("data", data) != data:
        changes.append("the files of the data are others")
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


def differences(recipe: Finetune, manifest: Manifest, base_content: str) -> list[str]:
    """What `recipe` wants and the finished run was not trained with, in words; what is not recorded was a
    default."""
    wanted = json.loads(json.dumps(recipe_to_json(recipe)))
    was = _defaults() | manifest.recipe
    keys = [key for key in wanted if key not in WITHOUT_EFFECT and was.get(key) != wanted[key]]
    changes = [f"{key} was {was.get(key)}, is now {wanted[key]}" for key in keys]
    if [entry.get("content") for entry in manifest.inputs] != [base_content]:
        changes.append("the weights of the base are others")
    return changes


def _defaults() -> Json:
    values = {field.name: field.default for field in dataclasses.fields(Finetune)}
    known: Json = json.loads(json.dumps(values, default=lambda _: None))
    return known


def write_sweep(
    recipe: FinetuneSweep,
    runs: Sequence[Run],
    done: dict[str, Manifest],
    *,
    lowered: Mapping[str, int],
    probe: Manifest | None = None,
) -> Manifest:
    """Write the sweep's own manifest, atomically: members are the runs that are finished by now.

    lowered: how often the learning rate of a run was lowered because it diverged.
    """
    members = [run for run in runs if run.name in done]
    starts = [entry for manifest in (probe,) if manifest for entry in manifest.inputs]
    manifest = Manifest(
        command=COMMAND,
        recipe=recipe_to_json(recipe),
        inputs=[_seen_from_sweep(entry) for entry in starts]
        + [_seen_from_sweep(entry) for run in members[:1] for entry in done[run.name].inputs],
        metrics={run.name: done[run.name].metrics for run in members},
        notes={
            "members": [run.name for run in members],
            "hyper_parameters": {run.name: trained_with(run, done[run.name]) for run in members},
        }
        | ({"lowered": dict(lowered)} if lowered else {}),
    )
    manifest.write(recipe.out)
    return manifest


def _seen_from_sweep(entry: Json) -> Json:
    """A run's record of its base, with the path relative to the sweep instead of the run."""
    return entry | {"path": os.path.normpath(Path("run", entry["path"]))}


def trained_with(run: Run, manifest: Manifest) -> Settings:
    """The hyper-parameters that a finished run was trained with: those drawn, its learning rate perhaps
    lowered."""
    found: Settings = manifest.notes.get("hyper_parameters", run.settings)
    return {name: found.get(name, value) for name, value in run.settings.items()}


def settings_table(runs: Sequence[Run]) -> Table:
    """The drawn hyper-parameters of every run."""
    rows = tuple((run.name, *(_short(run.settings[name]) for name in HYPER_PARAMETERS)) for run in runs)
    return Table("runs", ("run", *HYPER_PARAMETERS), rows)


def ranking(runs: Sequence[Run], done: dict[str, Manifest]) -> list[Json]:
    """The members, best on held-out first: their top-1 on both splits, hyper-parameters, and their averages'
    top-1."""
    rows = []
    for run in (run for run in runs if run.name in done):
        manifest = done[run.name]
        row: Json = {"run": run.name}
        for split in ("held_out", "test"):
            row |= _top1(manifest.metrics, split)
            for name, metrics in manifest.notes.get("averages", {}).items():
                row |= {f"{name}_{key}": value for key, value in _top1(metrics, split).items()}
        rows.append(row | trained_with(run, manifest))
    return sorted(rows, key=lambda row: -(row["held_out_top1"] or 0))


def _top1(metrics: Json, split: str) -> Json:
    score = metrics.get(split, {}).get("top1", {})
    parts = {"top1": "value", "standard_error": "standard_error", "num_examples": "num_examples"}
    return {f"{split}_{name}": score.get(part) for name, part in parts.items()}


def leaderboard(rows: Sequence[Json]) -> Table:
    """A ranking to look at, with the hyper-parameters that vary."""
    names = varying([{name: row[name] for name in HYPER_PARAMETERS if name in row} for row in rows])
    averages = [key for key in (rows[0] if rows else ()) if key.endswith("_held_out_top1")]
    keys = ("held_out_top1", "held_out_standard_error", "test_top1", *averages)
    cells: list[tuple[Cell, ...]] = [
        (row["run"], *(_rounded(row.get(key)) for key in keys), *(_short(row[name]) for name in names))
        for row in rows
    ]
    titles = [f"{key.removesuffix('_held_out_top1')} held-out" for key in averages]
    columns = ("run", "held-out top-1", "±", "test top-1", *titles, *names)
    return Table("leaderboard", columns, tuple(cells), "held-out chooses; test only reports")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _short(value: Cell) -> Cell:
    return float(f"{value:.3g}") if isinstance(value, float) else value
