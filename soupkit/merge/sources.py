"""The checkpoints that a merge reads: their values, their hashes as they are read, and who holds what is no
number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.hashing import BLOCK, ContentHash
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import name_of, read_chunk, slots_of
from soupkit.errors import CheckpointError


class BlockHash:
    """Feeds one tensor's bytes, given in order in pieces of any size, to a content hash, if any, block by
    block."""

    __slots__ = ("_block", "_digest", "_filled", "_hashes", "_name")

    def __init__(self, hashes: ContentHash | None, name: str, block: int = 0) -> None:
        self._hashes, self._name = hashes, name
        self._block, self._filled = block, 0
        self._digest = xxhash.xxh3_128()

    def update(self, values: Array) -> None:
        """Take the next elements."""
        if self._hashes is None:
            return
        while values.size >= (left := BLOCK - self._filled):
            self._digest.update(values[:left].view(np.uint8).data)
            self._filled = BLOCK
            self.finish()
            values = values[left:]
        self._digest.update(values.view(np.uint8).data)
        self._filled += values.size

    def finish(self) -> None:
        """The tensor, or a block of it, is complete."""
        if self._filled and self._hashes is not None:
            self._hashes.add(self._name, self._block, self._digest.digest())
            self._block, self._filled = self._block + 1, 0
            self._digest.reset()


@dataclass(frozen=True)
class Source:
    """A checkpoint that is read: its tensors, its place, and the hash that its bytes go into (None: not
    hashed)."""

    tensors: Mapping[str, Array]
    position: int
    hashes: ContentHash | None = None

    @cached_property
    def slots(self) -> Mapping[str, Slot]:
        """Shape and dtype of each tensor."""
        return slots_of(self.tensors)

    def hashing(self, name: str, block: int = 0) -> BlockHash:
        """What takes the bytes of a tensor from a block on."""
        return BlockHash(self.hashes, name, block)

    def read(self, name: str, start: int, size: int, raw: Array | None = None) -> Array:
        """Elements of a tensor as they are stored, in the bytes `raw` if given."""
        dtype = NUMPY_DTYPES[self.slots[name].dtype]
        values: Array = np.empty(size, dtype) if raw is None else raw[: size * dtype.itemsize].view(dtype)
        read_chunk(self.tensors, name, start, values)
        return values


def held(sources: Sequence[Source], name: str, start: int, size: int, places: Array) -> list[Array]:
    """What each source holds at some places of a chunk of a tensor, as float64."""
    return [source.read(name, start, size)[places].astype(np.float64) for source in sources]


def is_mask(found: Sequence[Array]) -> bool:
    """Whether all hold the same and none of it is finite: masks of −∞, which stay as they are."""
    return not np.isfinite(found[0]).any() and all(np.array_equal(values, found[0]) for values in found)


def refuse_non_finite(sources: Sequence[Source], name: str, found: Sequence[Array]) -> None:
    """Raise CheckpointError for the first source that holds NaN or infinity, if one does."""
    for source, values in zip(sources, found, strict=True):
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{name_of(source.tensors, source.position)}: tensor {name!r} holds NaN or infinity",
                hint="leave this checkpoint out; it probably diverged (--non-finite keep merges it all "
                "the same)",
            )
