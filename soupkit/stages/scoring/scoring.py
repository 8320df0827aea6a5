"""Scoring soups that exist only as coefficients: load, score, remember."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import temporary_sibling
from soupkit.command_identity import command_identity
from soupkit.events import Advanced, Finished, Report, Started, Told, silent
from soupkit.identity import digest, files_identity, tree_identity
from soupkit.merge.memory import Memory
from soupkit.merge.mixture import Mixture, keep_batch_norm, subset_mean
from soupkit.merge.stream import stream
from soupkit.remembered import Remembered
from soupkit.soup.greedy import Bar
from soupkit.stages.inputs.download import download
from soupkit.stages.outputs.soup import Ingredients, stream_options, write_soup
from soupkit.task.batch_norm import refresh
from soupkit.task.external import CommandScorer
from soupkit.task.images.metrics import all_scores, score_predictions
from soupkit.task.images.task import ImageTask, open_task
from soupkit.task.score import Score, scores_to_json
from soupkit.world import ALONE, World

REFRESHING = ("refresh", "batch")
"""Values of --bn with which the statistics of what is written are re-estimated."""


class SoupTask:
    """A task whose model takes mixtures of the ingredients: exactly the bits that would be written."""

    def __init__(self, ingredients: Ingredients, recipe: Any, world: World) -> None:
        self.ingredients = ingredients
        self.recipe = recipe
        self.world = world
        self.task: ImageTask = open_task(ingredients.checkpoints[0], recipe, world)

    def load(self, mixture: Mixture) -> dict[str, Array]:
        """Load a mixture into the model; returns refreshed batch-norm statistics, empty unless --bn asks for them."""
        rows, slots = mixture.used(), self.ingredients.plan.slots
        memory = Memory(slots)
        options = dataclasses.replace(stream_options(self.recipe, self.world), hash=False)
        sources = [self.ingredients.checkpoints[row] for row in rows]
        stream(sources, mixture.select(rows), memory, slots=slots, options=options)
        ties = {dropped: memory.tensors[kept] for dropped, kept in self.ingredients.agreement.ties.items()}
        self.task.load({**memory.tensors, **ties})
        return self.refresh() if self.recipe.bn in REFRESHING else {}

    def refresh(self) -> dict[str, Array]:
        """Re-estimate batch-norm statistics on training data; returns them rounded to what will be written."""
        slots = self.ingredients.plan.slots
        order = np.random.default_rng(self.recipe.split_seed).permutation(len(self.task.train))
        images = order[: self.recipe.bn_batches * self.recipe.batch_size]
        batches = self.task.train.batches(batch_size=self.recipe.batch_size, indices=images)
        changed = map(self.task.saved_name, refresh(self.task.model, batches, self.task.outputs))
        tensors = self.task.tensors()
        return {name: np.ascontiguousarray(tensors[name]).astype(NUMPY_DTYPES[slots[name].dtype]) for name in changed}

    def measure(self, checkpoint: Checkpoint, *, test: bool) -> dict[str, Any]:
        """All metrics of a written checkpoint, on held-out and, where asked for, on test."""
        self.task.load(checkpoint)
        splits = {"held_out": self.task.held_out} | ({"test": self.task.test} if test else {})
        return {name: scores_to_json(all_scores(self.task.predict(examples))) for name, examples in splits.items()}


class HeldOutScorer:
    """Scores mixtures on held-out data; a count metric's trial ends once the bar is out of reach.

    The examples that the current soup gets wrong, or nearly wrong, come first, so a hopeless trial ends soon; the
    verdict is the same as without early stop, since only trials that cannot reach the bar end early.
    """

    def __init__(self, soup: SoupTask, *, metric: str, early_stop: bool) -> None:
        self._soup = soup
        self._metric = metric
        self._early_stop = early_stop

    def __call__(self, mixture: Mixture, bar: Bar | None) -> Score:
        self._soup.load(mixture)
        task = self._soup.task
        if bar is None or bar.score.num_right is None:
            return score_predictions(task.predict(task.held_out), self._metric)
        order = None if bar.score.margins is None else np.argsort(bar.score.margins, kind="stable")
        needed = bar.score.num_right + (bar.accept == "gt") if self._early_stop else None
        return task.trial(task.held_out, metric=self._metric, order=order, needed_right=needed)

    def measure(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """All metrics of a written checkpoint, as a manifest holds them."""
        return self._soup.measure(checkpoint, test=self._soup.recipe.test)

    def identity(self) -> str:
        """What a remembered score depends on beside the weights: model, data and metric, and how soups are made."""
        recipe = self._soup.recipe
        batch_norm = [recipe.bn, recipe.bn_batches, recipe.batch_size] if recipe.bn in REFRESHING else []
        made = _how_made(self._soup.ingredients, recipe)
        return digest(self._soup.task.fingerprint(), self._metric, made, batch_norm)

    def beside(self, _rows: Sequence[int]) -> Any:
        """What it reads of some ingredients beside their weights: nothing, the model is the task's."""
        return None


class WrittenScorer:
    """Writes each mixture into a temporary checkpoint directory and lets an external command score it."""

    def __init__(self, command: CommandScorer, ingredients: Ingredients, recipe: Any, world: World) -> None:
        self._command = command
        self._ingredients = ingredients
        self._recipe = recipe
        self._world = world

    def __call__(self, mixture: Mixture, _bar: Bar | None) -> Score:
        return self._world.in_main(lambda: self._score(mixture))

    def _score(self, mixture: Mixture) -> Score:
        rows = mixture.used()
        only = self._ingredients.checkpoints[rows[0]] if len(rows) == 1 else None
        if only is not None and self._is_as_written(only) and (mixture.matrix[rows[0]] == 1).all():
            return self._command.score(only.fetch())
        with temporary_sibling(self._recipe.out) as directory:
            soup = directory / "soup"
            write_soup(
                self._ingredients,
                mixture,
                dataclasses.replace(self._recipe, sha256=False),
                self._world.alone(),
                silent,
                command="trial",
                out=soup,
            )
            return self._command.score(soup)

    def _is_as_written(self, checkpoint: Checkpoint) -> bool:
        """Whether a single checkpoint lies there in the dtypes that soups of it are scored and written in."""
        slots = self._ingredients.plan.slots.items()
        return checkpoint.path.is_dir() and all(checkpoint.slots[name].dtype == slot.dtype for name, slot in slots)

    def measure(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The command's score of a written checkpoint, as a manifest holds it."""
        score = self._command.score(checkpoint.directory)
        return {"held_out": scores_to_json({score.metric: score})}

    def identity(self) -> str:
        """What a remembered score depends on beside the directory: what the command is, and how soups are made."""
        recipe = self._recipe
        return digest(command_identity(recipe.score_command), recipe.metric, _how_made(self._ingredients, recipe))

    def beside(self, rows: Sequence[int]) -> Any:
        """The files beside the weights in the directory that the command is given."""
        written = files_identity((path.name, path) for path in self._ingredients.model.companions)
        only = self._ingredients.checkpoints[rows[0]] if len(rows) == 1 else None
        if only is None or not self._is_as_written(only):
            return written
        weights = {file.resolve() for file in only.files}
        return [written, tree_identity(only.fetch(), keep=lambda path: path.resolve() not in weights)]


def _how_made(ingredients: Ingredients, recipe: Any) -> Any:
    """What decides the bits of a soup beside ingredients and coefficients."""
    dtypes = [[name, slot.dtype] for name, slot in ingredients.plan.slots.items()]
    return [recipe.dtype, recipe.integers, recipe.non_finite, recipe.accumulate, dtypes]


class RememberingScorer:
    """Keeps complete scores, so that an interrupted search resumes.

    A score is remembered under the content of the ingredients, their coefficients, and the scorer's identity.
    """

    def __init__(
        self,
        scorer: HeldOutScorer | WrittenScorer,
        contents: Sequence[str],
        world: World = ALONE,
        *,
        memory: Remembered | None = None,
    ) -> None:
        self._world = world
        self._scorer = scorer
        self._contents = contents
        self._memory = memory or Remembered("scores")
        self._identity = world.in_main(scorer.identity)
        self._beside: dict[int | None, Any] = {}
        self.num_remembered = 0

    def __call__(self, mixture: Mixture, bar: Bar | None) -> Score:
        key = self._world.in_main(lambda: self._key(mixture))
        score = self._world.in_main(lambda: self._read(key))  # the ranks must agree on what is known
        if score is not None:
            self.num_remembered += 1
            return score
        score = self._scorer(mixture, bar)
        if not score.stopped and self._world.is_main:
            values = {field.name: getattr(score, field.name) for field in dataclasses.fields(score)}
            margins = values.pop("margins")
            self._memory.write(key, values, {} if margins is None else {"margins": margins})
        return score

    def tell(self, report: Report) -> None:
        """Say how many scores were known, and if they could not be kept."""
        for text in self._memory.said(self.num_remembered, "scores"):
            report(Told(text))

    def _key(self, mixture: Mixture) -> str:
        used = mixture.used()
        rows = [[self._contents[k], mixture.coefficients[k].tolist()] for k in used]
        blocks = sorted(mixture.blocks.items()) if mixture.blocks else None
        return self._memory.key(rows, mixture.divisor, blocks, self._identity, self._files_of(used))

    def _files_of(self, used: Sequence[int]) -> Any:
        """What the scorer sees beside the weights, looked at once."""
        which = used[0] if len(used) == 1 else None
        if which not in self._beside:
            self._beside[which] = self._scorer.beside(used)
        return self._beside[which]

    def _read(self, key: str) -> Score | None:
        found = self._memory.read(key)
        try:
            return None if found is None else Score(**found[0], margins=found[1].get("margins"))
        except TypeError:  # a score of another form
            return None


def contents_of(checkpoints: Sequence[Checkpoint], world: World, report: Report) -> list[str]:
    """The content hash of every ingredient; rank 0 reads them."""
    return world.in_main(lambda: _contents(checkpoints, world, report))


def _contents(checkpoints: Sequence[Checkpoint], world: World, report: Report) -> list[str]:
    download(checkpoints, report)
    report(Started("hashing ingredients", len(checkpoints), "checkpoints"))
    contents = []
    for checkpoint in checkpoints:
        contents.append(content_hash(checkpoint, threads=world.num_threads))
        report(Advanced("hashing ingredients"))
    report(Finished("hashing ingredients"))
    return contents


def mix_with_batch_norm(recipe: Any, names: Sequence[str]) -> Any:
    """How picks become a mixture: their mean, with the first pick's batch-norm statistics under `--bn keep`."""

    def mix(ingredients: Sequence[str], picks: Sequence[int]) -> Mixture:
        mixture = subset_mean(ingredients, picks)
        return keep_batch_norm(mixture, picks[0], names) if recipe.bn == "keep" and len(picks) > 1 else mixture

    return mix
