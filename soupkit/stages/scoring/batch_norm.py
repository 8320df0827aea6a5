"""`--bn refresh` for merges that need data for nothing else."""

from __future__ import annotations

from typing import Any

from soupkit.checkpoint.dtypes import Array
from soupkit.events import Report, Told
from soupkit.merge.mixture import Mixture
from soupkit.stages.outputs.soup import Ingredients
from soupkit.stages.scoring.scoring import SoupTask
from soupkit.world import World


def refreshed_statistics(
    ingredients: Ingredients, mixture: Mixture, recipe: Any, world: World, report: Report
) -> dict[str, Array]:
    """Batch-norm statistics of the soup, re-estimated on training data. Raises TaskError without --data or a model."""
    soup = SoupTask(ingredients, recipe, world)
    changed = soup.load(mixture)
    report(Told(f"{len(changed)} batch-norm tensors re-estimated on up to {recipe.bn_batches} training batches"))
    return changed
