"""What every way of merging shares: the pool of threads, values rounded, judged, hashed and written, integers
settled.

What differs is the work on a `Unit`: see stream.py (mixtures) and per_tensor.py (methods).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array, Rounding
from soupkit.checkpoint.hashing import BLOCK, ContentHash, hashed_slots
from soupkit.checkpoint.header import Slot
from soupkit.merge.integers import settle
from soupkit.merge.policy import Integers, Sink
from soupkit.merge.pool import run_batches
from soupkit.merge.sources import BlockHash, Source
from soupkit.world import available_cores

CHUNK = 1 << 17
"""Elements handled at a time: few enough to stay in cache, enough that threads seldom wait for the
interpreter."""
MOST_THREADS = 8
"""More only wait for memory, and each has buffers of its own (about 6 MB)."""
_TINY = 1 << 15
"""Tensors of fewer bytes on average spend their time in the interpreter, where a second thread only gets in
the way."""


@dataclass(frozen=True)
class StreamOptions:
    """How to combine: see `soupkit.recipe.shared.WeightOptions`; chunk is in elements and divides BLOCK."""

    integers: Integers = "auto"
    non_finite: Literal["error", "keep"] = "error"
    accumulate: Literal["float64", "float32"] = "float64"
    threads: int = 0
    chunk: int = CHUNK
    hash: bool = True


DEFAULTS = StreamOptions()


@dataclass
class Streamed:
    """What a merge found out: content hashes of what it read and of the result, integers that differed."""

    inputs: list[str] = field(default_factory=list)
    output: str = ""
    differing_integers: list[str] = field(default_factory=list)


class Unit(NamedTuple):
    """Elements of a tensor that belong to one thread; they begin at a block of the content hash."""

    name: str
    start: int
    stop: int


class Room:
    """What one thread reuses: bytes as they are read, and as they are written."""

    def __init__(self, size: int) -> None:
        self.raw = np.empty(size * 8, np.uint8)
        self.out = np.empty(size * 8, np.uint8)
        self.rounding = Rounding(size)


class Writer:
    """Takes what is merged of `read` into the tensors `slots`, and hands it to a sink."""

    def __init__(
        self,
        read: Sequence[Mapping[str, Array]],
        sink: Sink,
        slots: Mapping[str, Slot],
        options: StreamOptions,
    ) -> None:
        self.slots, self.options = slots, options
        trees = [ContentHash(hashed_slots(each)) if options.hash else None for each in read]
        self.sources = [
            Source(each, place, tree) for place, (each, tree) in enumerate(zip(read, trees, strict=True))
        ]
        self._output = ContentHash(slots) if options.hash else None
        self._sink = sink
        self._differing: set[str] = set()

    def hashing(self, unit: Unit) -> BlockHash:
        """What takes the written bytes of a unit."""
        return BlockHash(self._output, unit.name, unit.start // BLOCK)

    def write(
        self,
        name: str,
        start: int,
        made: Array,
        room: Room,
        hashes: BlockHash,
        judge: Callable[[Array], None],
    ) -> None:
        """Round values into the tensor's dtype and write them; `judge` is asked about written ones that are
        no numbers.

        It raises CheckpointError, or puts right what it is given.
        """
        dtype = NUMPY_DTYPES[self.slots[name].dtype]
        written = room.out[: made.size * dtype.itemsize].view(dtype)
        room.rounding.into(made, written)
        if self.options.non_finite == "error" and not np.isfinite(written).all():
            judge(written)
        hashes.update(written)
        self._sink.write(name, start, written)

    def into(self, sink: Sink) -> Writer:
        """One that takes into another sink what is made of the same sources, which are hashed here."""
        other = Writer([], sink, self.slots, self.options)
        other.sources = [replace(source, hashes=None) for source in self.sources]
        return other

    def settle(self, name: str, voters: Sequence[Source], base: Source | None = None) -> None:
        """Integers and booleans: copied where all voters hold the same, else by policy."""
        policy, slot = self.options.integers, self.slots[name]
        if settle(
            name, slot, self.sources, voters, self._sink, policy=policy, output=self._output, base=base
        ):
            self._differing.add(name)

    def run(
        self,
        units: Sequence[Unit],
        work: Callable[[Unit], None],
        *,
        batch: int,
        threads: int,
        advance: Callable[[int], None],
    ) -> None:
        """Do the work on all units, about `batch` elements at a time."""

        def each(some: Sequence[Unit]) -> int:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                for unit in some:
                    work(unit)
            return sum(
                (unit.stop - unit.start) * NUMPY_DTYPES[self.slots[unit.name].dtype].itemsize for unit in some
            )

        run_batches(each, _batches(units, batch), threads=threads, advance=advance)

    def found(self) -> Streamed:
        """What came out, once all work is done."""
        inputs = [source.hashes.digest() for source in self.sources if source.hashes]
        return Streamed(inputs, self._output.digest() if self._output else "", sorted(self._differing))


def threads_for(options: StreamOptions, num_bytes: int, num_units: int) -> int:
    """How many threads pay: one for tiny tensors, few for large ones."""
    return 1 if num_bytes < _TINY * num_units else min(options.threads or available_cores(), MOST_THREADS)


def _batches(units: Sequence[Unit], size: int) -> Iterator[list[Unit]]:
    """Group units so that the pool is not asked once per tiny tensor, each of which costs as much as many
    elements."""
    batch: list[Unit] = []
    elements = 0
    for unit in units:
        batch.append(unit)
        elements += unit.stop - unit.start + size // 512
        if elements >= size:
            yield batch
            batch, elements = [], 0
    if batch:
        yield batch
