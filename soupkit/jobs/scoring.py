"""Scoring soups that exist only as coefficients: load, score, remember."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import temporary_sibling
from soupkit.events import Advanced, Finished, Report, Started, silent
from soupkit.jobs.download import download
from soupkit.jobs.soup import Ingredients, stream_options, write_soup
from soupkit.merge.memory import Memory
from soupkit.merge.mixture import Mixture, keep_batch_norm, subset_mean
from soupkit.merge.stream import stream
from soupkit.metrics import Direction, direction_of, metric_of
from soupkit.soup.greedy import Bar
from soupkit.task.batch_norm import refresh
from soupkit.task.external import CommandScorer
from soupkit.task.score import Score, all_scores, score_predictions, scores_to_json
from soupkit.task.task import Task, open_task
from soupkit.whole import whole_file
from soupkit.world import ALONE, World, cache_folder


class SoupTask:
    """A task whose model takes mixtures of the ingredients: exactly the bits that would be written."""

    def __init__(self, ingredients: Ingredients, recipe: Any, world: World) -> None:
        self.ingredients = ingredients
        self.recipe = recipe
        self.world = world
        self.task: Task = open_task(ingredients.checkpoints[0], recipe, world)

    def load(self, mixture: Mixture) -> dict[str, Array]:
        """Load a mixture into the model; returns refreshed batch-norm statistics, empty unless `--bn refresh`."""
        rows, slots = mixture.used(), self.ingredients.plan.slots
        memory = Memory(slots)
        options = dataclasses.replace(stream_options(self.recipe, self.world), hash=False)
        sources = [self.ingredients.checkpoints[row] for row in rows]
        stream(sources, mixture.select(rows), memory, slots=slots, options=options)
        ties = {dropped: memory.tensors[kept] for dropped, kept in self.ingredients.agreement.ties.items()}
        self.task.load({**memory.tensors, **ties})
        return self.refresh() if self.recipe.bn == "refresh" else {}

    def refresh(self) -> dict[str, Array]:
        """Re-estimate batch-norm statistics on training data; returns them rounded to what will be written."""
        slots = self.ingredients.plan.slots
        order = np.random.default_rng(self.recipe.split_seed).permutation(len(self.task.train))
        images = order[: self.recipe.bn_batches * self.recipe.batch_size]
        batches = self.task.train.batches(batch_size=self.recipe.batch_size, indices=images)
        changed = map(self.task.saved_name, refresh(self.task.model, batches, self.task.device))
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

    def fingerprint(self) -> str:
        """What a remembered score depends on beside the weights."""
        recipe = self._soup.recipe
        batch_norm = [recipe.bn, recipe.bn_batches, recipe.batch_size] if recipe.bn == "refresh" else []
        return json.dumps([self._soup.task.fingerprint(), self._metric, recipe.dtype, batch_norm])


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
        if len(rows) == 1 and self._ingredients.checkpoints[rows[0]].path.is_dir():
            return self._command.score(self._ingredients.checkpoints[rows[0]].fetch())
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

    def measure(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The command's score of a written checkpoint, as a manifest holds it."""
        score = self._command.score(checkpoint.directory)
        return {"held_out": scores_to_json({score.metric: score})}

    def fingerprint(self) -> str:
        """What a remembered score depends on beside the weights."""
        recipe = self._recipe
        return json.dumps([recipe.score_command, recipe.metric, recipe.dtype])


class RememberingScorer:
    """Keeps complete scores by content hash, coefficients and task, so that an interrupted search resumes.

    Files lie under $SOUPKIT_CACHE, else $XDG_CACHE_HOME/soupkit, else ~/.cache/soupkit.
    """

    def __init__(self, scorer: HeldOutScorer | WrittenScorer, contents: Sequence[str], world: World = ALONE) -> None:
        self._world = world
        self._scorer = scorer
        self._contents = contents
        self._folder = cache_folder() / "scores"
        self.num_remembered = 0

    def __call__(self, mixture: Mixture, bar: Bar | None) -> Score:
        path = self._folder / f"{self._key(mixture)}.npz"
        score = self._world.in_main(lambda: _read_score(path))  # the ranks must agree on what is known
        if score is not None:
            self.num_remembered += 1
            return score
        score = self._scorer(mixture, bar)
        if not score.stopped and self._world.is_main:
            _write_score(path, score)
        return score

    def _key(self, mixture: Mixture) -> str:
        used = mixture.used()
        rows = sorted([self._contents[k], mixture.coefficients[k].tolist()] for k in used)
        blocks = sorted(mixture.blocks.items()) if mixture.blocks else None
        key = json.dumps([rows, mixture.divisor, blocks, self._scorer.fingerprint()])
        return xxhash.xxh3_128_hexdigest(key.encode())


def _read_score(path: Path) -> Score | None:
    """A remembered score; None when there is none or it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values = json.loads(str(arrays["score"]))
            margins = arrays.get("margins")
        return Score(**values, margins=margins)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _write_score(path: Path, score: Score) -> None:
    """Remember a score, whole or not at all; a cache that cannot be written is no reason to stop."""
    values = {field.name: getattr(score, field.name) for field in dataclasses.fields(score) if field.name != "margins"}
    arrays: dict[str, Any] = {"score": np.array(json.dumps(values))}
    if score.margins is not None:
        arrays["margins"] = score.margins
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            np.savez(temporary, **arrays)


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


def direction(recipe: Any) -> Direction:
    """Which way is better, by the recipe or by the metric."""
    return direction_of(metric_of(recipe), recipe.direction)


def mix_with_batch_norm(recipe: Any, names: Sequence[str]) -> Any:
    """How picks become a mixture: their mean, with the first pick's batch-norm statistics under `--bn keep`."""

    def mix(ingredients: Sequence[str], picks: Sequence[int]) -> Mixture:
        mixture = subset_mean(ingredients, picks)
        return keep_batch_norm(mixture, picks[0], names) if recipe.bn == "keep" and len(picks) > 1 else mixture

    return mix
