"""`Permuted`: a checkpoint with its units in another order, read as lazily as the checkpoint itself."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

import numpy as np

from soupkit.align.spec import Permutation, PermutationSpec
from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.source import read_chunk
from soupkit.checkpoint.views.view import View, record_of
from soupkit.jsons import Json

SMALL = 1 << 20
"""Elements of a tensor that is gathered whole and kept for the next read."""
SHORT_ROW = 1 << 10
"""Elements of a row that is too short to be read by itself."""


class Permuted(View):
    """`source` with new[i] = old[permutation[i]] along every axis that a group lies on; the bits of values
    are kept.

    A part of a large tensor is read row by row, and its inner axes are gathered. Memory: one row of a large
    tensor, or one small tensor, per thread; the tensor once more where a large one is read whole.
    """

    def __init__(self, source: Mapping[str, Array], spec: PermutationSpec, permutation: Permutation) -> None:
        super().__init__(source)
        self.spec, self.permutation = spec, permutation
        self._local = threading.local()
        self._found: dict[str, dict[int, Array]] = {}

    def record(self) -> Json:
        """The groups that move."""
        moved = {name: index for name, index in self.permutation.items() if (index[1:] < index[:-1]).any()}
        written = {name: " ".join(map(str, index.tolist())) for name, index in moved.items()}
        return {**record_of(self.source), "permutation": written}

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        shape = self.slots[name].shape
        indices = self._indices(name)
        row = math.prod(shape[1:])
        if not indices:
            read_chunk(self.source, name, start, out)
        elif out.size == math.prod(shape):
            out[:] = self._gathered(name).reshape(-1)
        elif math.prod(shape) <= SMALL or row < SHORT_ROW:
            out[:] = self._whole(name).reshape(-1)[start : start + out.size]
        else:
            self._read_rows(name, start, out, indices, row)

    def _read_rows(self, name: str, start: int, out: Array, indices: Mapping[int, Array], row: int) -> None:
        slot, first = self.slots[name], indices.get(0)
        values = np.empty(row, NUMPY_DTYPES[slot.dtype])
        for number in range(start // row, -(-(start + out.size) // row)):
            read_chunk(self.source, name, int(number if first is None else first[number]) * row, values)
            block = values.reshape(slot.shape[1:])
            for axis, index in indices.items():
                block = block.take(index, axis - 1) if axis else block
            begin, end = max(start, number * row), min(start + out.size, (number + 1) * row)
            out[begin - start : end - start] = block.reshape(-1)[begin - number * row : end - number * row]

    def _whole(self, name: str) -> Array:
        """A small tensor; blocks of one tensor are asked for one after the other, so the last is kept."""
        if getattr(self._local, "name", None) != name:
            self._local.values, self._local.name = self._gathered(name), name
        values: Array = self._local.values
        return values

    def _gathered(self, name: str) -> Array:
        values = self.source[name]
        for axis, index in self._indices(name).items():
            values = values.take(index, axis)
        return values

    def _indices(self, name: str) -> dict[int, Array]:
        """The gather along each axis that is not the identity."""
        if name not in self._found:
            axes = range(len(self.slots[name].shape)) if name in self.spec.axes else ()
            found = {axis: self.spec.index(name, axis, self.permutation) for axis in axes}
            self._found[name] = {axis: index for axis, index in found.items() if index is not None}
        return self._found[name]
