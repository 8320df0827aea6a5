"""`merge swa`, `merge ema` and `merge posthoc-ema`: averages along one training, after the fact.

Each is a mixture whose coefficients follow from the order of the checkpoints alone.
"""

from __future__ import annotations

import numpy as np

from soupkit.checkpoint.source import Source
from soupkit.checkpoint.views.view import checkpoint_of
from soupkit.errors import RecipeError
from soupkit.events import Report, Told, Warned
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.merge.mixture import Mixture, keep_batch_norm, subset_mean, weighted
from soupkit.merge.running import Ema, PowerEma, Snapshot, Swa, coefficients, synthesise
from soupkit.recipe.averages import MergeEma, MergePosthocEma, MergeSwa
from soupkit.stages.inputs.ordered import open_in_order
from soupkit.stages.outputs.soup import Ingredients, Record, prepare, show_plan, write_soup
from soupkit.world import World

Recipe = MergeSwa | MergeEma | MergePosthocEma
POOR = 0.1
"""A profile that differs by more than this share from the wanted one is worth a warning."""


def merge_swa(recipe: MergeSwa, world: World, report: Report) -> Json:
    """The mean of the checkpoints that count, all alike."""
    ingredients = _open(recipe, report)
    column = coefficients(Swa(recipe.start, recipe.every), len(ingredients.names))
    mixture = subset_mean(ingredients.names, [int(k) for k in np.flatnonzero(column)])
    return _write(ingredients, mixture, recipe, world, report, command="merge swa")


def merge_ema(recipe: MergeEma, world: World, report: Report) -> Json:
    """The exponential moving average, unrolled into its coefficients."""
    ingredients = _open(recipe, report)
    rule = Ema(recipe.decay, every=recipe.every, start=recipe.start, gamma=recipe.gamma, power=recipe.power)
    mixture = weighted(ingredients.names, coefficients(rule, len(ingredients.names)).tolist())
    return _write(ingredients, mixture, recipe, world, report, command="merge ema")


def merge_posthoc_ema(recipe: MergePosthocEma, world: World, report: Report) -> Json:
    """The mixture of snapshots of power-function EMAs that comes nearest to one of another width."""
    ingredients = _open(recipe, report)
    snapshots = [recorded_snapshot(checkpoint) for checkpoint in ingredients.checkpoints]
    at = recipe.at or max(snapshot.step for snapshot in snapshots)
    column, error = synthesise(snapshots, Snapshot(PowerEma.of_width(recipe.sigma_rel), at))
    said = (
        f"the profile differs by {error:.2%} from that of an EMA of width {recipe.sigma_rel:g} at update {at}"
    )
    report(
        Warned(f"{said}: the snapshots are too few or too far apart for it") if error > POOR else Told(said)
    )
    mixture = weighted(ingredients.names, column.tolist())
    record = Record(notes={"at": at, "profile_error": error})
    return _write(ingredients, mixture, recipe, world, report, command="merge posthoc-ema", record=record)


def recorded_snapshot(source: Source) -> Snapshot:
    """What the manifest beside a checkpoint on disk says of the power-function EMA that it is.

    Raises RecipeError where there is none, or it says nothing.
    """
    checkpoint = checkpoint_of(source)
    here = checkpoint is not None and checkpoint.remote is None
    manifest = Manifest.read_if_any(checkpoint.directory) if checkpoint and here else None
    entry = manifest.notes.get("posthoc") if manifest else None
    try:
        return Snapshot(PowerEma(float(entry["gamma"])), int(entry["step"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        raise RecipeError(
            f"{source.reference}: is no snapshot of a power-function EMA",
            hint="train with --posthoc-sigma 0.05,0.1 and give OUT/posthoc; merge ema averages other "
            "checkpoints",
        ) from None


def _open(recipe: Recipe, report: Report) -> Ingredients:
    if recipe.bn == "refresh" and not recipe.data:
        raise RecipeError("--bn refresh needs --data", hint="name the data, or use --bn average")
    return prepare(open_in_order(recipe.refs, recipe.order, report, stream=recipe.stream), recipe, report)


def _write(
    ingredients: Ingredients,
    mixture: Mixture,
    recipe: Recipe,
    world: World,
    report: Report,
    *,
    command: str,
    record: Record = Record(),  # noqa: B008  (frozen)
) -> Json:
    used, names = mixture.used(), ingredients.names
    values = mixture.matrix[used, 0]
    report(
        Told(
            f"{len(used)} of {len(names)} checkpoints, from {names[used[0]]} (coefficient {values[0]:.4g}) "
            f"to {names[used[-1]]} ({values[-1]:.4g})"
        )
    )
    if recipe.bn == "last":
        mixture = keep_batch_norm(mixture, len(names) - 1, ingredients.agreement.slots)
    if recipe.dry_run:
        return show_plan(ingredients, recipe, world, report) | {"coefficients": mixture.matrix[:, 0].tolist()}
    replaced = None
    if recipe.bn == "refresh":
        from soupkit.stages.scoring.scoring import refreshed_statistics

        replaced = refreshed_statistics(ingredients, mixture, recipe, world, report)
    return write_soup(
        ingredients, mixture, recipe, world, report, command=command, record=record, replaced=replaced
    )
