"""`align --rotate`: units matched and the residual stream turned, as checkpoints that any library loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from soupkit.align.match import Match, best_match
from soupkit.align.rotate import Stream, best_rotation, fold, rotated, stream_of
from soupkit.align.similarity import Pair, objective_names, permuted
from soupkit.align.spec import PermutationSpec
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array
from soupkit.checkpoint.hashing import content_hash
from soupkit.events import Report, Told
from soupkit.jobs.aligned import Aligned, check_same_function, match_notes, open_network
from soupkit.jobs.download import download
from soupkit.task.weights import to_torch

MAX_ROUNDS = 10
TOLERANCE = 1e-6
"""A round that raises the cosine by less is the last."""
Tensors = dict[str, torch.Tensor]


class Rewritten(Mapping[str, Array]):
    """A checkpoint with other floating tensors in place of its own, rounded once into its dtypes."""

    def __init__(self, source: Checkpoint, tensors: Tensors) -> None:
        self.source, self.tensors = source, tensors
        self.slots = source.slots

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __getitem__(self, name: str) -> Array:
        if name not in self.tensors or self.slots[name].dtype not in FLOATING:
            return self.source[name]
        return self.tensors[name].numpy().astype(NUMPY_DTYPES[self.slots[name].dtype])

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        out[:] = self[name].reshape(-1)[start : start + out.size]

    def record(self) -> dict[str, Any]:
        """What a manifest adds of it to an input."""
        return {"content": content_hash(self.source)}


def rotated_ingredients(checkpoints: Sequence[Checkpoint], *, to: int, recipe: Any, report: Report) -> Aligned:
    """Match and turn every checkpoint to the one at place `to`; that one is only folded.

    Raises AlignError for a network that is no pre-norm VisionTransformer, or whose function would change; nothing that
    could be written is returned then. Memory: all models in float64.
    """
    download(checkpoints, report)
    stream = stream_of(checkpoints[0])
    network = open_network(checkpoints[0], recipe, report)
    folded = [fold({name: to_torch(np.asarray(each[name])) for name in each}, stream) for each in checkpoints]
    views, matches = [], []
    for place, (checkpoint, tensors) in enumerate(zip(checkpoints, folded, strict=True)):
        if place == to:
            match = Match({}, 1.0, 1.0, "identity")
        else:
            tensors, match = turned_to(folded[to], tensors, network.spec, stream, seed=recipe.seed)
        view = Rewritten(checkpoint, tensors)
        check_same_function(network, checkpoint, view)
        views.append(cast(Checkpoint, view))
        matches.append(match)
        report(Told(f"{checkpoint.reference}: cosine {match.cosine_before:.4f} → {match.cosine:.4f}, turned"))
    notes = {
        "to": checkpoints[to].reference,
        "rotated": True,
        "verification": network.verification.to_json(),
        "matches": [match_notes(match) for match in matches],
        "spec": json.dumps(network.spec.to_json(), separators=(",", ":")),
    }
    return Aligned(views, to, matches, notes)


def turned_to(
    target: Tensors, other: Tensors, spec: PermutationSpec, stream: Stream, *, seed: int
) -> tuple[Tensors, Match]:
    """Match units, turn the stream, match the rest again, until the cosine rises no more. All tensors are folded."""
    first = _match(target, other, spec, seed=seed)
    before, current = first.cosine_before, other
    cosine, match = -1.0, first
    within = spec.pin([stream.a_norm])
    for _ in range(MAX_ROUNDS):
        moved = {n: permuted(t, spec, n, match.permutation) if n in spec.axes else t for n, t in current.items()}
        moved = rotated(moved, stream, best_rotation(target, moved, stream))
        match = _match(target, moved, within, seed=seed)
        if match.cosine_before <= cosine + TOLERANCE:
            break
        current, cosine = moved, match.cosine_before
    return current, replace(first, cosine_before=before, cosine=cosine)


def _match(target: Tensors, other: Tensors, spec: PermutationSpec, *, seed: int) -> Match:
    names = objective_names(spec, target)
    first, second = ({name: each[name].float().contiguous() for name in names} for each in (target, other))
    return best_match(Pair(spec, first, second), seed=seed)
