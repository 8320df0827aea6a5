"""The data plane of mixtures: combine checkpoints chunk by chunk, in bounded memory, without torch.

Work is cut into the blocks of the content hash, so every input is read once, and hashed while it is in cache.
Memory: threads × 5 small buffers, whatever the number or the size of the ingredients. Cost: linear in bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from soupkit.checkpoint.dtypes import FLOATING, Array
from soupkit.checkpoint.hashing import BLOCK
from soupkit.checkpoint.header import Slot
from soupkit.merge.mixture import Mixture
from soupkit.merge.policy import Sink, overflow
from soupkit.merge.sources import Source, held, is_mask, refuse_non_finite
from soupkit.merge.writer import DEFAULTS, Room, Streamed, StreamOptions, Unit, Writer, threads_for

BATCH = 1 << 20
"""Elements that one task of the pool covers at least: tiny tensors are batched."""

Ingredient = Mapping[str, Array]


def stream(
    ingredients: Sequence[Ingredient],
    mixture: Mixture,
    sink: Sink,
    *,
    slots: Mapping[str, Slot],
    options: StreamOptions = DEFAULTS,
    advance: Callable[[int], None] = lambda _: None,
) -> Streamed:
    """Combine ingredients into the tensors `slots` and hand them to `sink`: w = Σ_k c_k w_k / divisor.

    Sums in float64, in the order of the ingredients' names, one rounding into the slot's dtype; integers by
    policy. The bits do not depend on threads, chunks, shards, tensor order or the order of the ingredients.
    `advance` is told the bytes written. Raises CompatibilityError (integers that differ), CheckpointError
    (non-finite results, files that change).
    """
    assert 0 < options.chunk <= BLOCK
    writer = Writer(ingredients, sink, slots, options)
    combination = _Combination(writer, mixture)
    units = sorted(_units(slots), key=lambda unit: slots[unit.name].dtype in FLOATING)
    threads = threads_for(options, sum(slot.num_bytes for slot in slots.values()), len(units))
    return writer.run(
        units, combination.combine, combination.voters, batch=BATCH, threads=threads, advance=advance
    )


def _units(slots: Mapping[str, Slot]) -> list[Unit]:
    """Blocks of floating tensors; integers are settled as a whole, which is one unit."""
    return [
        Unit(name, start, min(start + step, slot.num_elements))
        for name, slot in slots.items()
        for step in [BLOCK if slot.dtype in FLOATING else max(1, slot.num_elements)]
        for start in range(0, slot.num_elements, step)
    ]


class _Combination:
    """One mixture, and the buffers that each of its threads owns."""

    def __init__(self, writer: Writer, mixture: Mixture) -> None:
        self._writer, self._mixture = writer, mixture
        self._order = sorted(range(len(writer.sources)), key=lambda k: mixture.ingredients[k])
        self._local = threading.local()

    def voters(self, name: str) -> list[Source]:
        """The used ingredients; of none, the first."""
        column, sources = self._mixture.column(name), self._writer.sources
        return [source for source, c in zip(sources, column, strict=True) if c != 0] or sources[:1]

    def combine(self, unit: Unit) -> None:
        """Combine a block on the calling thread."""
        name, options, sources = unit.name, self._writer.options, self._writer.sources
        if not hasattr(self._local, "buffers"):
            self._local.buffers = _Buffers(options)
        buffers: _Buffers = self._local.buffers
        column, written = self._mixture.column(name), self._writer.hashing(unit)
        read = [source.hashing(name, unit.start // BLOCK) for source in sources]
        for start in range(unit.start, unit.stop, options.chunk):
            total, product = buffers.sums(
                self._writer.slots[name].dtype, min(options.chunk, unit.stop - start)
            )
            for k in self._order:
                values = sources[k].read(name, start, total.size, buffers.room.raw)
                read[k].update(values)
                first = k == self._order[0]
                if first or column[k] != 0:
                    _accumulate(total, values, column[k], product, first=first)
            if self._mixture.divisor != 1:
                np.divide(total, self._mixture.divisor, out=total)
            self._writer.write(name, start, total, buffers.room, written, partial(self._judge, name, start))
        for hashes in (*read, written):
            hashes.finish()

    def _judge(self, name: str, start: int, result: Array) -> None:
        """Non-finite values that every used ingredient holds alike (masks of −∞) stay; any other is an
        error."""
        bad = ~np.isfinite(result)
        used = [
            source
            for source, c in zip(self._writer.sources, self._mixture.column(name), strict=True)
            if c != 0
        ]
        found = held(used, name, start, result.size, bad)
        if is_mask(found):
            result[bad] = found[0]
            return
        refuse_non_finite(used, name, found)
        raise overflow(name, self._writer.slots[name].dtype)


class _Buffers:
    """What one thread reuses for every chunk."""

    def __init__(self, options: StreamOptions) -> None:
        self.room = Room(options.chunk)
        self._options = options
        self._sums: dict[object, tuple[Array, Array]] = {}

    def sums(self, dtype: str, size: int) -> tuple[Array, Array]:
        """Room for a sum and a product. Sums that are written as float64 are kept in the machine's long
        double: three times a float64 is no float64, and three equal models must give themselves."""
        wide = dtype == "F64" and self._options.accumulate == "float64"
        kind = np.longdouble if wide else self._options.accumulate
        if kind not in self._sums:
            self._sums[kind] = (np.empty(self._options.chunk, kind), np.empty(self._options.chunk, kind))
        total, product = self._sums[kind]
        return total[:size], product[:size]


def _accumulate(total: Array, values: Array, coefficient: float, product: Array, *, first: bool) -> None:
    """total (+)= coefficient · values; ones are not multiplied, zeros of the first ingredient only clear."""
    if coefficient == 0:
        total[:] = 0
    elif coefficient == 1 and first:
        np.copyto(total, values, casting="unsafe")
    elif coefficient == 1 and values.dtype.itemsize >= 4:
        np.add(total, values, out=total, casting="unsafe")
    else:
        np.copyto(product, values, casting="unsafe")
        if coefficient != 1:
            np.multiply(product, coefficient, out=product)
        np.copyto(total, product) if first else np.add(total, product, out=total)
