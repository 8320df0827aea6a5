"""Scoring many mixtures of a few checkpoints: in worker processes or over ranks, each point once,
remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from soupkit.asked import ScoresPoints
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import Agreement, check_compatible
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.source import Source
from soupkit.curve.geometry import Matrix
from soupkit.events import Advanced, Event, Finished, Report, Started, Told
from soupkit.identity import digest
from soupkit.jsons import Json
from soupkit.merge.mixture import Mixture
from soupkit.merge.writer import StreamOptions
from soupkit.remembered import Remembered
from soupkit.stages.inputs.curve import is_one_checkpoint
from soupkit.stages.inputs.download import download
from soupkit.stages.scoring.scoring import JUDGED, contents_of, load_mixture, predict, refresh_statistics
from soupkit.task.images.task import open_task
from soupkit.task.randomness import torch_threads
from soupkit.task.score import scores_to_json
from soupkit.task.task import Role, Task
from soupkit.train.pool import run_in_processes
from soupkit.world import World, available_cores

TASK: Literal["points"] = "points"
METRICS = ("nll", "top1")
Point = dict[str, Json]
"""{split: {metric: {value, standard_error, num_examples}}} of one point."""


@dataclass(frozen=True)
class Places:
    """Points to score: checkpoints by reference and path, and coefficients float64[P, K]; what a worker is
    sent."""

    refs: tuple[str, ...]
    paths: tuple[Path, ...]
    coefficients: Matrix

    def mixture(self, point: int) -> Mixture:
        """One point as a mixture."""
        return Mixture(self.refs, self.coefficients[point][:, None])


class PointModel:
    """A task's model at points between checkpoints that are kept in memory: the bits that would be written.

    change: what is done to the model at a point that is none of the checkpoints themselves: batch-norm
    statistics are re-estimated, units are repaired. Memory: the checkpoints.
    """

    def __init__(
        self,
        task: Task,
        checkpoints: Sequence[Source],
        agreement: Agreement,
        *,
        options: StreamOptions,
        change: Callable[[Mixture], object] | None = None,
    ) -> None:
        self.task, self.agreement = task, agreement
        self._checkpoints, self._options, self._change = checkpoints, options, change
        self._kept: list[dict[str, Array]] = []

    def load(self, mixture: Mixture) -> None:
        """Load a point, changed where it is none of the checkpoints."""
        slots, ties = self.agreement.slots, self.agreement.ties
        self._kept = self._kept or [{name: each[name] for name in slots} for each in self._checkpoints]
        load_mixture(self.task, self._kept, mixture, slots=slots, ties=ties, options=self._options)
        if self._change and not is_one_checkpoint(mixture):
            self._change(mixture)


class PointScorer:
    """Scores points on every split. Memory: the checkpoints, the model, and the decoded examples."""

    def __init__(self, checkpoints: Sequence[Source], recipe: ScoresPoints, world: World) -> None:
        self.recipe = recipe
        self.task: Task = open_task(checkpoints[0], recipe, world.alone())
        self.splits: tuple[Role, ...] = ("train", *JUDGED) if recipe.train else JUDGED
        self._model = PointModel(
            self.task,
            checkpoints,
            check_compatible(checkpoints, mismatch="warn"),
            options=StreamOptions(threads=world.num_threads),
            change=self._refresh if recipe.bn == "refresh" else None,
        )

    def _refresh(self, _: Mixture) -> None:
        refresh_statistics(self.task, self.recipe, num_batches=self.recipe.bn_batches)

    def score(self, mixture: Mixture) -> Point:
        """NLL and accuracy of a mixture on every split."""
        self._model.load(mixture)
        # Convolutions run up to 2.5 times as fast so. Not while statistics are estimated: those are written
        # elsewhere, by a model that is laid out as usual, and must come out as the same bits.
        self.task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        point = {}
        for split in self.splits:
            found = predict(self.task, split)
            scores = {name: self.task.metrics[name].of(found.outputs, found.targets) for name in METRICS}
            point[str(split)] = scores_to_json(scores)
        self.task.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return point

    def fingerprint(self) -> str:
        """What a remembered point depends on beside the weights."""
        refreshing = [self.recipe.bn, self.recipe.bn_batches, self.recipe.batch_size, self.recipe.split_seed]
        dtypes = [[name, slot.dtype] for name, slot in self._model.agreement.slots.items()]
        return digest(self.task.fingerprint(), self.splits, refreshing, dtypes)


Todo = Sequence[tuple[int, str]]
"""Numbers of points, and the keys under which they are remembered."""


def score_points(
    checkpoints: Sequence[Checkpoint],
    coefficients: Matrix,
    recipe: ScoresPoints,
    world: World,
    report: Report,
) -> list[Point]:
    """Score every mixture, float64[P, K] coefficients of the checkpoints; points remembered from earlier runs
    are not.

    The others are spread over ranks, else over `recipe.jobs` processes of one thread each (on CUDA: this
    one), and remembered one by one. Returns the P points in order, on every rank.
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
        judge = world.in_main(scorer.fingerprint)
        keys = [memory.key_of(contents, places.mixture(point), judge) for point in range(len(coefficients))]
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
    scorer: PointScorer, places: Places, todo: Todo, recipe: ScoresPoints, world: World, report: Report
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


def _work(
    places: Places, todo: Todo, recipe: ScoresPoints, world: World, report: Report
) -> tuple[dict[int, Point], str | None]:
    """A worker's points; everything is opened anew."""
    checkpoints = [
        Checkpoint(path, reference=ref) for path, ref in zip(places.paths, places.refs, strict=True)
    ]
    with torch_threads(1):
        return _score_some(PointScorer(checkpoints, recipe, world), places, todo, report)


def _score_some(
    scorer: PointScorer, places: Places, todo: Todo, report: Report
) -> tuple[dict[int, Point], str | None]:
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


def _known(keys: Sequence[str], splits: Sequence[str], memory: Remembered) -> dict[int, Point]:
    """The points that are remembered, by their numbers."""
    found = {number: memory.read(key) for number, key in enumerate(keys)}
    return {
        number: entry[0]
        for number, entry in found.items()
        if entry is not None and set(entry[0]) == set(splits)
    }
