"""What `merge learned`, `merge mehl` and `merge twa` share: open, plan the memory, learn, write.

Shape suffixes: K ingredients, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from soupkit.checkpoint.dtypes import FLOATING
from soupkit.events import Told
from soupkit.jsons import Json
from soupkit.merge.memory import combined
from soupkit.merge.writer import StreamOptions
from soupkit.recipe.soup import LearnedRecipe
from soupkit.soup.coordinates import Coordinates
from soupkit.soup.fit import Fit, Learned, ReadBatches, Settings, best_epoch, folds
from soupkit.soup.live import LiveModel
from soupkit.soup.plan import MemoryPlan, give_back_memory
from soupkit.soup.subspace import Subspace
from soupkit.stages.learning.search import Search
from soupkit.stages.outputs.soup import show_plan
from soupkit.task.activations import evaluating


def dry_run(search: Search) -> Json:
    """What --dry-run prints: the memory, then the files."""
    search.report(search.memory.table())
    shown = show_plan(search.ingredients, search.recipe, search.world, search.report)
    return {**shown, "memory": search.memory.to_json()}


def begin(search: Search) -> LiveModel:
    """Say what will live where, and make the model live with the statistics that stay outside the span."""
    search.report(search.memory.table())
    if search.journal.resumed:
        search.report(Told("going on where an interrupted run of the same command stopped"))
    _load_outside(search)
    model = LiveModel(
        search.soup.task,
        search.layout,
        search.ingredients.plan.slots,
        search.world,
        batch_statistics=search.batch_statistics,
        head_moves=search.head_moves,
        at_once=search.memory.prompts,
    )
    give_back_memory()
    return model


def learn(
    search: Search,
    model: LiveModel,
    subspace: Subspace,
    make: Callable[[], Coordinates],
    settings: Settings,
    *,
    position: tuple[int, ...] = (),
    read: ReadBatches | None = None,
) -> tuple[Fit, Learned, Json]:
    """Learn coordinates in one subspace: first how many epochs, over folds, then on everything.

    Returns the run, its losses, and notes: the scores of the folds and the number of epochs that they chose.
    """
    stage = "/".join(map(str, position)) or "all"
    everything = np.arange(len(search.examples))
    read = read or (lambda pieces, _epoch: search.examples.chunks(pieces))
    before = search.soup.refresh if search.refreshes else None
    at_start = None if search.batch_statistics else before

    def fit(indices: np.ndarray, *place: int) -> Fit:
        where = (*position, *place)
        return Fit(make(), subspace, model, settings, read, indices, where, search.journal, search.report)

    notes: Json = {}
    stop_after = None
    if search.recipe.folds:
        notes = _cross_fit(search, fit, before, stage, len(everything))
        stop_after = notes["epochs"]
    run = fit(everything)
    return run, run.run(f"{stage}/learn", stop_after=stop_after, before_epoch=at_start), notes


def _cross_fit(
    search: Search,
    fit: Callable[..., Fit],
    before: Callable[[], object] | None,
    stage: str,
    num_examples: int,
) -> Json:
    """Scores of every fold after 0, 1, 2, … epochs, and the number of epochs with the best mean."""
    recipe, task = search.recipe, search.soup.task
    scores, lower = [], task.metrics[recipe.metric].direction == "min"
    for number, (inside, outside) in enumerate(folds(num_examples, recipe.folds, recipe.seed)):
        name = f"{stage}/fold-{number}"

        def score(outside: np.ndarray = outside) -> float:
            if before:
                before()
            with evaluating(task.model):
                return task.score(task.held_out, recipe.metric, indices=outside).value

        if search.journal.result(name) is None:
            search.report(
                Told(f"fold {number + 1} of {recipe.folds}: {len(inside)} learn, {len(outside)} score")
            )
            run = fit(inside, number)
            learned = run.run(
                name,
                before_epoch=None if search.batch_statistics else before,
                after_epoch=score,
                patience=recipe.patience,
                lower_is_better=lower,
            )
            search.journal.finish(name, learned.scores)
        scores.append(search.journal.result(name))
    best, means = best_epoch(scores, lower_is_better=lower)
    search.report(
        Told(f"cross-fitting chose {best} epochs: {recipe.metric} {means[best]:.4f} on examples not learned")
    )
    return {"epochs": best, "metric": recipe.metric, "mean_scores": means, "fold_scores": scores}


def settings_of(recipe: LearnedRecipe, memory: MemoryPlan) -> Settings:
    """The loop's settings out of a recipe with LearnOptions."""
    assert recipe.lr is not None
    return Settings(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        piece=memory.piece,
        weight_decay=recipe.weight_decay,
        clip_grad=recipe.clip_grad,
        seed=recipe.seed,
    )


def _load_outside(search: Search) -> None:
    """Buffers of the model: those of the uniform soup, or the first ingredient's."""
    mixture = search.mixture(search.mean_KB())
    slots = {
        name: slot
        for name, slot in search.ingredients.plan.slots.items()
        if name not in search.layout.blocks and slot.dtype in FLOATING
    }
    if slots:
        options = StreamOptions(integers=search.recipe.integers, threads=1, hash=False)
        values = combined(search.ingredients.checkpoints, mixture, slots=slots, options=options)
        search.soup.task.load({**search.soup.task.tensors(), **values})
