"""Scoring many mixtures of a few checkpoints: in worker processes or over ranks, each point once, remembered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import check_compatible
from soupkit.checkpoint.dtypes import Array
from soupkit.curve.geometry import Matrix
from soupkit.events import Advanced, Event, Finished, Report, Started, Told
from soupkit.jobs.curve_point import needs_refresh
from soupkit.jobs.download import download
from soupkit.jobs.scoring import contents_of
from soupkit.merge.memory import Memory
from soupkit.merge.mixture import Mixture
from soupkit.merge.stream import StreamOptions, stream
from soupkit.task.batch_norm import refresh
from soupkit.task.score import score_predictions, scores_to_json
from soupkit.task.task import Task, open_task
from soupkit.train.pool import run_in_processes
from soupkit.train.randomness import torch_threads
from soupkit.whole import whole_file
from soupkit.world import World, available_cores, cache_folder

TASK = "points"
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
        self.agreement = check_compatible(checkpoints)
        self.task: Task = open_task(checkpoints[0], recipe, world.alone())
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

    def fingerprint(self) -> str:
        """What a remembered point depends on beside the weights."""
        refreshing = [self.recipe.bn, self.recipe.bn_batches, self.recipe.batch_size, self.recipe.split_seed]
        dtypes = sorted({slot.dtype for slot in self.agreement.slots.values()})
        return json.dumps([self.task.fingerprint(), self.splits, refreshing, dtypes])

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
            refresh(self.task.model, batches, self.task.device)


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
    with torch_threads(1):
        scorer = PointScorer(checkpoints, recipe, dataclasses.replace(world, threads=1))
        paths = _paths(places, contents_of(checkpoints, world, report), scorer.fingerprint())
        known = world.broadcast([read_point(path) is not None for path in paths])
        todo = [number for number, done in enumerate(known) if not done]
        if len(todo) < len(paths):
            report(Told(f"{len(paths) - len(todo)} of {len(paths)} points are remembered from earlier runs"))
        if todo:
            report(Started(TASK, len(todo), "points"))
            _score_all(scorer, places, [(number, paths[number]) for number in todo], recipe, world, report)
            report(Finished(TASK))
    return _collected(paths, world)


def _score_all(
    scorer: PointScorer,
    places: Places,
    todo: Sequence[tuple[int, Path]],
    recipe: Any,
    world: World,
    report: Report,
) -> None:
    """Score this rank's share of the points, here or in worker processes."""
    mine = [todo[place] for place in world.share(len(todo))]
    alone = world.size > 1 or scorer.task.device.type == "cuda"
    num_processes = 1 if alone else min(recipe.jobs or available_cores(), len(mine))
    if num_processes <= 1:
        _score_some(scorer, places, mine, report)
        return
    pieces = {
        f"process {i}": (places, mine[i::num_processes], recipe, dataclasses.replace(world, threads=1))
        for i in range(num_processes)
    }

    def forward(_: str, event: Event) -> None:
        if isinstance(event, Advanced):
            report(event)

    run_in_processes(_work, pieces, num_processes=num_processes, on_event=forward, on_result=lambda *_: None)


def _work(places: Places, todo: Sequence[tuple[int, Path]], recipe: Any, world: World, report: Report) -> None:
    """A worker's points; everything is opened anew."""
    checkpoints = [Checkpoint(path, reference=ref) for path, ref in zip(places.paths, places.refs, strict=True)]
    with torch_threads(1):
        _score_some(PointScorer(checkpoints, recipe, world), places, todo, report)


def _score_some(scorer: PointScorer, places: Places, todo: Sequence[tuple[int, Path]], report: Report) -> None:
    for number, path in todo:
        write_point(path, scorer.score(places.mixture(number)))
        report(Advanced(TASK))


def _collected(paths: Sequence[Path], world: World) -> list[Point]:
    """Every point, from whichever rank has it: ranks on several machines have caches of their own."""
    found: dict[int, Point] = {}
    for part in world.gather({number: read_point(path) for number, path in enumerate(paths)}):
        found.update({number: point for number, point in part.items() if point is not None})
    return [found[number] for number in range(len(paths))]


def _paths(places: Places, contents: Sequence[str], fingerprint: str) -> list[Path]:
    """Where each point is remembered: under the weights, the coefficients, and the task."""
    paths = []
    for row in places.coefficients:
        used = sorted([content, float(c)] for content, c in zip(contents, row, strict=True) if c != 0)
        key = xxhash.xxh3_128_hexdigest(json.dumps([used, fingerprint]).encode())
        paths.append(cache_folder() / "points" / f"{key}.json")
    return paths


def read_point(path: Path) -> Point | None:
    """A remembered point; None when there is none or it cannot be read."""
    try:
        point: Point = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return point if isinstance(point, dict) else None


def write_point(path: Path, point: Mapping[str, Any]) -> None:
    """Remember a point, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(point), encoding="utf-8")
