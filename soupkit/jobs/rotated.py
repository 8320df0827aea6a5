"""`align --rotate`: units matched, the residual stream and the heads turned, as checkpoints that any library loads."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from soupkit.align.match import Match
from soupkit.align.permuted import Permuted
from soupkit.align.rotate import Matching, match_turned
from soupkit.align.spec import PermutationSpec
from soupkit.align.towers import Tower, towers_again, towers_to_json
from soupkit.align.turn import Tensors, Turn, fold, turned
from soupkit.align.turn_proof import proved
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array
from soupkit.errors import CheckpointError
from soupkit.events import Advanced, Finished, Report, Started, Told
from soupkit.jobs.aligned import TOLERANCE, Aligned, check_same_function, match_notes, open_network
from soupkit.jobs.download import download
from soupkit.task.weights import to_torch
from soupkit.train.randomness import torch_threads

TURN_FILE = "turn.npz"
"""Beside the weights of an output: the matrices that made it."""
NARROW_TOLERANCE = 0.05
"""Relative change of an output beyond which a checkpoint in less than float32 is not the same function: its weights are
rounded anew."""


class Turned(Mapping[str, Array]):
    """A checkpoint folded and turned, its floating tensors rounded once into its dtypes.

    permutation: of the source, before it is turned. One thread computes, so that the same matrices give the same bits.
    Memory: its tensors, once in float64 while they are made.
    """

    def __init__(
        self,
        source: Checkpoint,
        spec: PermutationSpec,
        towers: Sequence[Tower],
        permutation: Mapping[str, np.ndarray],
        turn: Turn,
    ) -> None:
        self.source, self.slots, self.turn = source, source.slots, turn
        self._permuted = Permuted(source, spec, permutation)
        with torch_threads(1):
            tensors = turned(fold(_tensors_of(self._permuted), towers), towers, turn)
        self._tensors = {
            name: tensors[name].numpy().astype(NUMPY_DTYPES[slot.dtype])
            for name, slot in self.slots.items()
            if slot.dtype in FLOATING
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __getitem__(self, name: str) -> Array:
        return self._tensors[name] if name in self._tensors else self._permuted[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        out[:] = self[name].reshape(-1)[start : start + out.size]

    def record(self) -> dict[str, Any]:
        """What a manifest adds of it to an input; the matrices are in a file of their own."""
        return {**self._permuted.record(), "turn": TURN_FILE}

    def write_turn(self, directory: Path) -> None:
        """Write the matrices beside the weights."""
        arrays = {name: tensor.numpy() for name, tensor in self.turn.to_arrays().items()}
        np.savez(directory / TURN_FILE, **arrays)  # type: ignore[arg-type]


def rotated_ingredients(checkpoints: Sequence[Checkpoint], *, to: int, recipe: Any, report: Report) -> Aligned:
    """Match and turn every checkpoint to the one at place `to`; that one is folded and its heads are balanced.

    What may be turned is proven on the network first; AlignError where nothing may be, or where a turned checkpoint
    would compute something else; nothing that could be written is returned then. Memory: see
    `soupkit.align.rotate.match_turned`, and all models once more.
    """
    download(checkpoints, report)
    network = open_network(checkpoints[0], recipe, report)
    proof = proved(network.model, network.inputs, seed=recipe.seed)
    for tower in proof.towers:
        report(Told(f"{tower.name}: {_freedoms(tower)}" + (f" ({tower.why})" if tower.why else "")))
    folded = [fold(_tensors_of(each), proof.towers) for each in checkpoints]
    report(Started("turning"))
    matching = Matching(network.spec, proof.towers, recipe.seed, recipe.restarts, lambda: report(Advanced("turning")))
    found = match_turned(folded, to, matching)
    report(Finished("turning"))
    for checkpoint, each in zip(checkpoints, found, strict=True):
        if each.num_rounds:
            rounds = f"{each.num_rounds} rounds"
            report(Told(f"{checkpoint.reference}: cosine {each.cosine_before:.4f} → {each.cosine:.4f}, {rounds}"))
    del folded
    views = [
        cast(Checkpoint, Turned(checkpoint, network.spec, proof.towers, each.permutation, each.turn))
        for checkpoint, each in zip(checkpoints, found, strict=True)
    ]
    for checkpoint, view in zip(checkpoints, views, strict=True):
        wide = all(slot.dtype in ("F32", "F64") for slot in view.slots.values() if slot.dtype in FLOATING)
        check_same_function(network, checkpoint, view, tolerance=TOLERANCE if wide else NARROW_TOLERANCE)
    matches = [Match(dict(each.permutation), each.cosine_before, each.cosine, "turned") for each in found]
    notes = {
        "to": checkpoints[to].reference,
        "rotated": True,
        "towers": towers_to_json(proof.towers),
        "verification": {**network.verification.to_json(), "turned": proof.errors},
        "matches": [match_notes(match) for match in matches],
        "spec": json.dumps(network.spec.to_json(), separators=(",", ":")),
    }
    return Aligned(views, to, matches, notes)


def turned_again(
    checkpoint: Checkpoint, entry: Mapping[str, Any], permutation: Mapping[str, np.ndarray], notes: Any, directory: Path
) -> Checkpoint:
    """A checkpoint, turned as a manifest in `directory` records. Raises CheckpointError for a record in pieces."""
    try:
        spec = PermutationSpec.from_json(json.loads(notes["alignment"]["spec"]))
        towers = towers_again(checkpoint.slots, notes["alignment"]["towers"])
        with np.load(directory / entry["turn"], allow_pickle=False) as arrays:
            turn = Turn.from_arrays({name: torch.from_numpy(arrays[name]) for name in arrays})
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{directory}: how it was turned cannot be read: {error!r}") from error
    return cast(Checkpoint, Turned(checkpoint, spec, towers, permutation, turn))


def _freedoms(tower: Tower) -> str:
    words = {"stream": "the residual stream", "qk": "queries and keys of heads", "vo": "values of heads"}
    return ", ".join(words[kind] for kind in tower.freedoms()) + " may be turned"


def _tensors_of(checkpoint: Mapping[str, Array]) -> Tensors:
    return {name: to_torch(np.asarray(checkpoint[name])) for name in checkpoint}
