"""`Turned`: a checkpoint whose streams and heads are turned, and how an output records it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from soupkit.align.permuted import Permuted
from soupkit.align.spec import PermutationSpec
from soupkit.align.turns.towers import Tower, towers_again
from soupkit.align.turns.turn import Tensors, Turn, fold, turned
from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array
from soupkit.checkpoint.source import Source, read_chunk
from soupkit.checkpoint.views.view import View
from soupkit.errors import CheckpointError
from soupkit.jsons import Json, JsonView
from soupkit.task.randomness import torch_threads
from soupkit.task.weights import to_torch

TURN_FILE = "turn.npz"
"""Beside the weights of an output: the matrices that made it."""


class Turned(View):
    """A checkpoint folded and turned, its floating tensors rounded once into its dtypes.

    permutation: of the source, before it is turned. One thread computes, so that the same matrices give the
    same bits. Memory: its tensors, once in float64 while they are made.
    """

    def __init__(
        self,
        source: Source,
        spec: PermutationSpec,
        towers: Sequence[Tower],
        permutation: Mapping[str, np.ndarray],
        turn: Turn,
    ) -> None:
        super().__init__(source)
        self.turn = turn
        self._permuted = Permuted(source, spec, permutation)
        with torch_threads(1):
            tensors = turned(fold(tensors_of(self._permuted), towers), towers, turn)
        self._tensors = {
            name: tensors[name].numpy().astype(NUMPY_DTYPES[slot.dtype])
            for name, slot in self.slots.items()
            if slot.dtype in FLOATING
        }

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        read_chunk(self._tensors if name in self._tensors else self._permuted, name, start, out)

    def record(self) -> Json:
        """The groups that move; the matrices are in a file of their own."""
        return {**self._permuted.record(), "turn": TURN_FILE}

    def write_turn(self, directory: Path) -> None:
        """Write the matrices beside the weights."""
        arrays = {name: tensor.numpy() for name, tensor in self.turn.to_arrays().items()}
        np.savez(directory / TURN_FILE, **arrays)  # type: ignore[arg-type]


def turned_again(
    checkpoint: Source,
    spec: PermutationSpec,
    permutation: Mapping[str, np.ndarray],
    notes: JsonView,
    file: Path,
) -> Turned:
    """A checkpoint, turned as a manifest's notes and the file beside it say. Raises CheckpointError."""
    try:
        towers = towers_again(checkpoint.slots, notes["alignment"]["towers"])
        with np.load(file, allow_pickle=False) as arrays:
            turn = Turn.from_arrays({name: torch.from_numpy(arrays[name]) for name in arrays})
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{file}: how it was turned cannot be read: {error!r}") from error
    return Turned(checkpoint, spec, towers, permutation, turn)


def tensors_of(checkpoint: Mapping[str, Array]) -> Tensors:
    """All of a checkpoint in memory."""
    return {name: to_torch(np.asarray(checkpoint[name])) for name in checkpoint}
