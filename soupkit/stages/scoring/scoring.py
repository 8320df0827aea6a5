"""Weights that exist only as coefficients, scored in one way: load, refresh, predict, score.

Searches (`judges`), points between checkpoints (`points`), lines with a change and learned soups go this way;
what is known already lies in `soupkit.remembered`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from soupkit.align.moments import Batches
from soupkit.asked import ReadsData, Tries
from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import Source
from soupkit.events import Advanced, Finished, Report, Started, Told
from soupkit.jsons import Json
from soupkit.merge.memory import combined
from soupkit.merge.mixture import Mixture
from soupkit.merge.writer import StreamOptions
from soupkit.stages.inputs.download import download
from soupkit.stages.outputs.soup import Ingredients, stream_options
from soupkit.task.batch_norm import refresh
from soupkit.task.images.task import ImageTask, open_task
from soupkit.task.score import Predictions, scores_to_json
from soupkit.task.task import Role, Task
from soupkit.world import World

REFRESHING = ("refresh", "batch")
"""Values of --bn with which the statistics of what is written are re-estimated."""
JUDGED: tuple[Role, Role] = ("held_out", "test")


class SoupTask:
    """A task whose model takes mixtures of the ingredients: exactly the bits that would be written.

    task: one that is open already, of checkpoints that these are views of.
    """

    def __init__(
        self, ingredients: Ingredients, recipe: Tries, world: World, *, task: ImageTask | None = None
    ) -> None:
        self.ingredients = ingredients
        self.recipe = recipe
        self.world = world
        self.task: ImageTask = task or open_task(ingredients.checkpoints[0], recipe, world)

    def load(self, mixture: Mixture) -> dict[str, Array]:
        """Load a mixture into the model; returns refreshed batch-norm statistics where --bn asks for them."""
        own = self.ingredients
        options = stream_options(self.recipe, self.world)
        load_mixture(
            self.task,
            own.checkpoints,
            mixture,
            slots=own.plan.slots,
            ties=own.agreement.ties,
            options=options,
        )
        return self.refresh() if self.recipe.bn in REFRESHING else {}

    def refresh(self) -> dict[str, Array]:
        """Re-estimate batch-norm statistics on training data; returns them rounded to what will be
        written."""
        changed = refresh_statistics(self.task, self.recipe, num_batches=self.recipe.bn_batches)
        tensors = self.task.tensors()
        return rounded({name: tensors[name] for name in changed}, self.ingredients.plan.slots)

    def measure(self, checkpoint: Source, *, test: bool) -> Json:
        """All metrics of a written checkpoint, on held-out and, where asked for, on test."""
        self.task.load(checkpoint)
        return measured(self.task, JUDGED if test else JUDGED[:1])

    @contextmanager
    def by_itself(self) -> Iterator[World]:
        """Inside, predictions are one process's own, in the world that is given; the other ranks may wait."""
        ranks = self.task.world
        self.task.world = ranks.alone()
        try:
            yield self.task.world
        finally:
            self.task.world = ranks


def refreshed_statistics(
    ingredients: Ingredients, mixture: Mixture, recipe: Tries, world: World, report: Report
) -> dict[str, Array]:
    """`--bn refresh` of a merge that needs data for nothing else. Raises TaskError without data or a
    model."""
    changed = SoupTask(ingredients, recipe, world).load(mixture)
    num = f"up to {recipe.bn_batches} training batches"
    report(Told(f"{len(changed)} batch-norm tensors re-estimated on {num}"))
    return changed


def load_mixture(
    task: Task,
    sources: Sequence[Mapping[str, Array]],
    mixture: Mixture,
    *,
    slots: Mapping[str, Slot],
    ties: Mapping[str, str],
    options: StreamOptions,
) -> None:
    """Combine as the writer does, and load it.

    slots: what is read, as it would be written; ties: dropped name → kept name. Memory: the mixture, beside
    the model. Raises what the engine raises, and TaskError for tensors that do not fit.
    """
    tensors = combined(sources, mixture, slots=slots, options=dataclasses.replace(options, hash=False))
    task.load({**tensors, **{dropped: tensors[kept] for dropped, kept in ties.items()}})


def refresh_statistics(task: Task, recipe: ReadsData, *, num_batches: int) -> list[str]:
    """Re-estimate the batch-norm statistics of the loaded weights; the checkpoint's names of what changed."""
    batches = training_batches(task, recipe, num_batches=num_batches)
    return [task.saved_name(name) for name in refresh(task.model, batches(), task.outputs)]


def training_batches(task: Task, recipe: ReadsData, *, num_batches: int) -> Callable[[], Batches]:
    """The same training examples at each call, as evaluation shows them."""
    order = np.random.default_rng(recipe.split_seed).permutation(len(task.train))
    chosen = order[: num_batches * recipe.batch_size]
    return lambda: task.train.batches(batch_size=recipe.batch_size, indices=chosen)


def rounded(tensors: Mapping[str, Array], slots: Mapping[str, Slot]) -> dict[str, Array]:
    """Tensors of a model in the dtypes that they are written in."""
    dtypes = {name: NUMPY_DTYPES[slots[name].dtype] for name in tensors}
    return {name: np.ascontiguousarray(values).astype(dtypes[name]) for name, values in tensors.items()}


def predict(task: Task, role: Role) -> Predictions:
    """What the loaded weights say of the examples of one split."""
    return task.predict(task.split(role))


def measured(task: Task, roles: Sequence[Role] = JUDGED) -> Json:
    """All metrics of the loaded weights on some splits, as a manifest holds them."""
    return {role: scores_to_json(task.scores(task.split(role))) for role in roles}


def contents_of(checkpoints: Sequence[Source], world: World, report: Report) -> list[str]:
    """The content hash of every ingredient; rank 0 reads them."""
    return world.in_main(lambda: _contents(checkpoints, world, report))


def _contents(checkpoints: Sequence[Source], world: World, report: Report) -> list[str]:
    download(checkpoints, report)
    report(Started("hashing ingredients", len(checkpoints), "checkpoints"))
    contents = []
    for checkpoint in checkpoints:
        contents.append(checkpoint.identity(threads=world.num_threads))
        report(Advanced("hashing ingredients"))
    report(Finished("hashing ingredients"))
    return contents
