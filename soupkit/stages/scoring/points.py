"""Scoring many mixtures of a few checkpoints: in worker processes or over ranks, each point once, remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.dtypes import Array
from soupkit.curve.geometry import Matrix
from soupkit.events import Advanced, Event, Finished, Report, Started, Told
from soupkit.identity import digest
from soupkit.merge.memory import Memory
from soupkit.merge.mixture import Mixture
from soupkit.merge.stream import StreamOptions, stream
from soupkit.remembered import Remembered
from soupkit.stages.inputs.curve import needs_refresh
from soupkit.stages.inputs.download import download
from soupkit.stages.scoring.scoring import contents_of
from soupkit.task.batch_norm import refresh
from soupkit.task.images.metrics import score_predictions
from soupkit.task.images.task import ImageTask, open_task
from soupkit.task.score import scores_to_json
from soupkit.train.pool import run_in_processes
from soupkit.train.randomness import torch_threads
from soupkit.world import World, available_cores

TASK: Literal["points"] = "points"
METRICS = ("nll", "top1")
Point = dict[str, dict[str, Any]]
"""{split: {metric: {value, standard_error, num_examples}}} of one point."""


@dataclass(frozen=True)
class Places:
    """Points to score: checkpoints by reference and path, and coefficients float64[P, K]; what a worker is sent."""

    refs: tuple[str, ...]
    paths: tuple[Path, ...]
    coefficients: Matrix

    def mixture(self, point: int) -> Mixture:
        """One point as a mixture."""
        return Mixture(self.refs, self.coefficients[point][:, None])


class PointScorer:
    """A task whose model takes mixtures of checkpoints that are kept in memory: the bits that would be written.

    Memory: the checkpoints, the model, and the decoded examples.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], recipe: Any, world: World) -> None:
        self.recipe, self.threads = recipe, world.num_threads
        self.agreement = check_compatible(checkpoints, mismatch="warn")
        self.task: ImageTask = open_task(checkpoints[0], recipe, world.alone())
        self.splits = ("train", "held_out", "test") if recipe.train else ("held_out", "test")
        self._checkpoints = checkpoints
        self._kept: list[dict[str, Array]] = []

    def score(self, mixture: Mixture) -> Point:
        """NLL and accuracy of a mixture on every split."""
        self.load(mixture)
        # Convolutions run up to 2.5 times as fast so. Not while statistics are estimated: those are written elsewhere,
        # by a model that is laid out as usual, and must come out as the same bits.
        self.task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        examples = {"train": self.task.train, "held_out": self.task.held_out, "test": self.task.test}
        point = {}
        for split in self.splits:
            predictions = self.task.predict(examples[split])
            point[split] = scores_to_json({metric: score_predictions(predictions, metric) for metric in METRICS})
        self.task.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return point

    def identity(self) -> str:
        """What a remembered point depends on beside the weights."""
        refreshing = [self.recipe.bn, self.recipe.bn_batches, self.recipe.batch_size, self.recipe.split_seed]
        dtypes = [[name, slot.dtype] for name, slot in self.agreement.slots.items()]
        return digest(self.task.fingerprint(), self.splits, refreshing, dtypes)

    def load(self, mixture: Mixture) -> None:
        """Combine exactly as the writer does, and re-estimate batch-norm statistics where no checkpoint has them."""
        names, slots = list(self.agreement.slots), self.agreement.slots
        if not self._kept:
            self._kept = [{name: each[name] for name in names} for each in self._checkpoints]
        memory, rows = Memory(slots), mixture.used()
        sources = [self._kept[row] for row in rows]
        options = StreamOptions(threads=self.threads, hash=False)
        stream(sources, mixture.select(rows), memory, slots=slots, options=options)
        ties = {dropped: memory.tensors[kept] for dropped, kept in self.agreement.ties.items()}
        self.task.load({**memory.tensors, **ties})
        if self.recipe.bn == "refresh" and needs_refresh(mixture, names):
            order = np.random.default_rng(self.recipe.split_seed).permutation(len(self.task.train))
            images = order[: self.recipe.bn_batches * self.recipe.batch_size]
            batches = self.task.train.batches(batch_size=self.recipe.batch_size, indices=images)
            refresh(self.task.model, batches, self.task.outputs)


Todo = Sequence[tuple[int, str]]
"""Numbers of points, and the keys under which they are remembered."""


def score_points(
    checkpoints: Sequence[Checkpoint], coefficients: Matrix, recipe: Any, world: World, report: Report
) -> list[Point]:
    """Score every mixture, float64[P, K] coefficients of the checkpoints; points remembered from earlier runs are not.

    The others are spread over ranks, else over `recipe.jobs` processes of one thread each (on CUDA: this one), and
    remembered one by one. Returns the P points in order, on every rank.
    """
    download(checkpoints, report)
    places = Places(
        tuple(checkpoint.reference for checkpoint in checkpoints),
        tuple(checkpoint.path for checkpoint in checkpoints),
        coefficients,
    )
    memory = Remembered.of(TASK, recipe)
    with torch_threads(1):
        scorer = PointScorer(checkpoints, recipe, dataclasses.replace(world, threads=1))
        contents = contents_of(checkpoints, world, report)
        keys = _keys(places, contents, world.in_main(scorer.identity), memory)
        points = world.broadcast(_known(keys, scorer.splits, memory) if world.is_main else None)
        todo = [(number, key) for number, key in enumerate(keys) if number not in points]
        if points:
            report(Told(f"{len(points)} of {len(keys)} points are remembered from earlier runs"))
        if todo:
            report(Started(TASK, len(todo), "points"))
            for found in world.gather(_score_all(scorer, places, todo, recipe, world, report)):
                points.update(found)
            report(Finished(TASK))
    return [points[number] for number in range(len(keys))]


def _score_all(
    scorer: PointScorer, places: Places, todo: Todo, recipe: Any, world: World, report: Report
) -> dict[int, Point]:
    """This rank's share of the points, scored here or in worker processes."""
    mine = [todo[place] for place in world.share(len(todo))]
    alone = world.size > 1 or scorer.task.device.type == "cuda"
    num_processes = 1 if alone else min(recipe.jobs or available_cores(), len(mine))
    if num_processes <= 1:
        points, failure = _score_some(scorer, places, mine, report)
        _tell(failure, report)
        return points
    pieces = {
        f"process {i}": (places, mine[i::num_processes], recipe, dataclasses.replace(world, threads=1))
        for i in range(num_processes)
    }
    found: dict[int, Point] = {}
    failures: list[str | None] = []

    def forward(_: str, event: Event) -> None:
        if isinstance(event, Advanced):
            report(event)

    def collect(_: str, result: tuple[dict[int, Point], str | None]) -> None:
        found.update(result[0])
        failures.append(result[1])

    run_in_processes(_work, pieces, num_processes=num_processes, on_event=forward, on_result=collect)
    _tell(next(filter(None, failures), None), report)
    return found


def _work(places: Places, todo: Todo, recipe: Any, world: World, report: Report) -> tuple[dict[int, Point], str | None]:
    """A worker's points; everything is opened anew."""
    checkpoints = [Checkpoint(path, reference=ref) for path, ref in zip(places.paths, places.refs, strict=True)]
    with torch_threads(1):
        return _score_some(PointScorer(checkpoints, recipe, world), places, todo, report)


def _score_some(scorer: PointScorer, places: Places, todo: Todo, report: Report) -> tuple[dict[int, Point], str | None]:
    """Points by their numbers, each remembered as it is found; and why they could not be, if so."""
    memory = Remembered.of(TASK, scorer.recipe)
    found: dict[int, Point] = {}
    for number, key in todo:
        found[number] = scorer.score(places.mixture(number))
        memory.write(key, found[number])
        report(Advanced(TASK))
    return found, memory.failure


def _tell(failure: str | None, report: Report) -> None:
    if failure:
        report(Told(f"points could not be remembered for later runs: {failure}"))


def _keys(places: Places, contents: Sequence[str], identity: str, memory: Remembered) -> list[str]:
    """The key of each point: the weights, the coefficients, and the task."""
    rows = (sorted([c, float(k)] for c, k in zip(contents, row, strict=True) if k != 0) for row in places.coefficients)
    return [memory.key(used, identity) for used in rows]


def _known(keys: Sequence[str], splits: Sequence[str], memory: Remembered) -> dict[int, Point]:
    """The points that are remembered, by their numbers."""
    found = {number: memory.read(key) for number, key in enumerate(keys)}
    return {number: entry[0] for number, entry in found.items() if entry is not None and set(entry[0]) == set(splits)}
