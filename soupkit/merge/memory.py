"""Combining into memory instead of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot
from soupkit.merge.mixture import Mixture
from soupkit.merge.stream import Ingredient, stream
from soupkit.merge.writer import StreamOptions


class Memory:
    """A sink of the merge engine that keeps the tensors."""

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self.tensors: dict[str, Array] = {
            name: np.empty(slot.shape, NUMPY_DTYPES[slot.dtype]) for name, slot in slots.items()
        }
        self._flat = {name: tensor.reshape(-1) for name, tensor in self.tensors.items()}

    def write(self, name: str, start: int, values: Array) -> None:
        """Take the elements of tensor `name` from number `start` on."""
        self._flat[name][start : start + values.size] = values


def combined(
    ingredients: Sequence[Ingredient], mixture: Mixture, *, slots: Mapping[str, Slot], options: StreamOptions
) -> dict[str, Array]:
    """The tensors `slots` of a mixture; ingredients without a coefficient are not read. Memory: the
    result."""
    rows, memory = mixture.used(), Memory(slots)
    stream([ingredients[row] for row in rows], mixture.select(rows), memory, slots=slots, options=options)
    return memory.tensors
