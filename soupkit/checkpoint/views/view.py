"""`View`: tensors that are made as they are read, from those of other checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot


class View(Mapping[str, Array]):
    """A mapping of tensors that need only say what they are, `slots`, and how a stretch of one is read."""

    slots: Mapping[str, Slot]

    @abstractmethod
    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""

    def __getitem__(self, name: str) -> Array:
        slot = self.slots[name]
        array = np.empty(slot.shape, NUMPY_DTYPES[slot.dtype])
        self.read_into(name, 0, array.reshape(-1))
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)
