"""`merge mehl`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from soupkit.checkpoint.reference import open_references
from soupkit.events import Report, Told
from soupkit.jsons import Json
from soupkit.recipe.soup import MergeMehl
from soupkit.soup.live import LiveModel
from soupkit.soup.mehl import HyperPlane
from soupkit.stages.learning.learning import begin, dry_run, learn, settings_of
from soupkit.stages.learning.search import Outcome, Search, open_search
from soupkit.stages.learning.written import learned, write_learned
from soupkit.stages.scoring.ranked import without_the_best
from soupkit.world import World


def merge_mehl(recipe: MergeMehl, world: World, report: Report) -> Json:
    """Learn a soup in the hyper-plane of model batches, write it, and score what was written."""
    checkpoints = without_the_best(open_references(recipe.refs), recipe, report)
    search = open_search(recipe, checkpoints, world, report, command="merge mehl", together=False)
    if recipe.dry_run:
        return dry_run(search)
    return write_learned(search, learned(search, lambda: _search(search, recipe)))


def model_batches(num_models: int, size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Every model once, in a new order each epoch, in consecutive batches whose sizes differ by at most
    one."""
    order = np.random.default_rng([seed, epoch]).permutation(num_models)
    return [sorted(part.tolist()) for part in np.array_split(order, -(-num_models // size))]


def _search(search: Search, recipe: MergeMehl) -> Outcome:
    """The first batch starts from its mean; later ones from the soup so far."""
    model = begin(search)
    outcome = Outcome(np.zeros((search.num_ingredients, search.layout.num_blocks)))
    for epoch in range(recipe.models_epochs):
        batches = model_batches(
            search.num_ingredients, search.memory.model_batch, seed=recipe.seed, epoch=epoch
        )
        for number, rows in enumerate(batches):
            if not outcome.losses:
                outcome.coefficients_KB[rows] = 1 / len(rows)
            name = f"models {epoch + 1}.{number + 1}"
            if len(batches) > 1:
                search.report(Told(f"{name}: {len(rows)} of {search.num_ingredients} models"))
            _learn_batch(search, recipe, model, outcome, rows, name=name, position=(epoch, number))
    return outcome


def _learn_batch(
    search: Search,
    recipe: MergeMehl,
    model: LiveModel,
    outcome: Outcome,
    rows: list[int],
    *,
    name: str,
    position: tuple[int, ...],
) -> None:
    """One model batch: outcome's coefficients are its centre, and then its result."""
    stage = f"batch {position}"
    done = search.journal.result(stage)
    if done is None:
        subspace = search.subspace(outcome.coefficients_KB, rows)
        clips: Literal["model", "coordinates"] = "model" if recipe.step == "distance" else "coordinates"
        run, fitted, chosen = learn(
            search,
            model,
            subspace,
            lambda: HyperPlane(subspace.norms, step=recipe.step, nonnegative=recipe.nonnegative),
            replace(settings_of(recipe, search.memory), schedule="cosine", warmup=recipe.warmup, clips=clips),
            position=position,
        )
        beta, gamma = (part.detach().numpy() for part in run.coordinates.point())
        found = subspace.coefficients(beta, gamma).tolist()
        done = {"coefficients": found, "losses": fitted.losses, "cross_fitting": chosen}
        search.journal.finish(stage, done)
    outcome.coefficients_KB = np.array(done["coefficients"])
    outcome.losses[name] = done["losses"]
    outcome.fold_scores = done["cross_fitting"].get("mean_scores", [])
    outcome.notes.setdefault("cross_fitting", []).append(done["cross_fitting"])
