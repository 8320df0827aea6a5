"""A curve's directory, opened, and what its points need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from soupkit.asked import ReadsData
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.reference import local_path
from soupkit.curve.curve import Curve
from soupkit.errors import RecipeError, ReferenceError
from soupkit.manifest import Manifest
from soupkit.merge.mixture import BATCH_NORM_STATISTICS, Mixture


def open_curve(reference: str) -> tuple[Curve, list[Checkpoint], Manifest]:
    """A curve, its bends in order, and its manifest. Raises ReferenceError for a directory that holds
    none."""
    directory = local_path(reference)
    manifest = Manifest.read_if_any(directory) if directory.is_dir() else None
    names = manifest.notes.get("bends") if manifest else None
    if manifest is None or not isinstance(names, list):
        raise ReferenceError(
            f"{reference}: holds no curve", hint="soupkit curve fit A B --out DIR writes one"
        )
    curve = Curve.from_json(manifest.notes.get("curve"))
    bends = [Checkpoint(directory / str(name), reference=str(Path(reference, str(name)))) for name in names]
    return curve, bends, manifest


def has_statistics(names: Iterable[str]) -> bool:
    """Whether there are batch-norm statistics among these tensors."""
    return any(name.rpartition(".")[2] in BATCH_NORM_STATISTICS for name in names)


def needs_refresh(mixture: Mixture, names: Iterable[str]) -> bool:
    """Whether a point has batch-norm statistics that no checkpoint has: one that is a single checkpoint keeps
    its."""
    return has_statistics(names) and not is_one_checkpoint(mixture)


def is_one_checkpoint(mixture: Mixture) -> bool:
    """Whether a mixture is one of its ingredients as it is."""
    used = mixture.used()
    return len(used) == 1 and bool((mixture.matrix[used[0]] == 1).all())


def check_has_data(recipe: ReadsData) -> None:
    """Raises RecipeError when batch-norm statistics are to be re-estimated on nothing."""
    if not recipe.data:
        raise RecipeError(
            "batch-norm statistics are re-estimated on training data, and none is named",
            hint="give --data, or average the bends' statistics: --bn average",
        )
