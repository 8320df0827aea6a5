"""The data plane of mixtures: combine checkpoints chunk by chunk, in bounded memory, without torch.

Work is cut into the blocks of the content hash, so every input is read once, and hashed while it is in cache;
several mixtures of the same inputs come from one read of them. Memory: threads × 5 small buffers (of many
mixtures: one more each, of smaller chunks), whatever the number or the size of the ingredients. Cost: linear
in bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from soupkit.checkpoint.dtypes import FLOATING, Array
from soupkit.checkpoint.hashing import BLOCK
from soupkit.checkpoint.header import Slot
from soupkit.merge.mixture import Mixture
from soupkit.merge.policy import Sink, overflow
from soupkit.merge.sources import Source, held, is_mask, refuse_non_finite
from soupkit.merge.writer import CHUNK, DEFAULTS, Room, Streamed, StreamOptions, Unit, Writer, threads_for

BATCH = 1 << 20
"""Elements that one task of the pool covers at least: tiny tensors are batched."""

FEWEST = 1 << 13
"""Elements of a chunk however many mixtures there are: fewer, and the interpreter has more to do than
they."""

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
    (found,) = stream_all(ingredients, [(mixture, sink)], slots=slots, options=options, advance=advance)
    return found


def stream_all(
    ingredients: Sequence[Ingredient],
    outputs: Sequence[tuple[Mixture, Sink]],
    *,
    slots: Mapping[str, Slot],
    options: StreamOptions = DEFAULTS,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Streamed]:
    """Several mixtures of the same ingredients, each into its sink, from one read of them.

    Each comes out in the bits that `stream` gives of the ingredients that it uses alone. `advance` is told
    the bytes written into one of them. Memory: threads × (outputs + 5) chunks, which are smaller for many
    outputs. Raises as `stream`.
    """
    assert 0 < options.chunk <= BLOCK
    if len(outputs) > 1:
        options = replace(options, chunk=min(options.chunk, max(FEWEST, CHUNK >> len(outputs).bit_length())))
    first = Writer(ingredients, outputs[0][1], slots, options)
    writers = [first, *(first.into(sink) for _, sink in outputs[1:])]
    combination = _Combination(
        [_Output(writer, mixture) for writer, (mixture, _) in zip(writers, outputs, strict=True)]
    )
    units = sorted(_units(slots), key=lambda unit: slots[unit.name].dtype in FLOATING)
    threads = threads_for(options, sum(slot.num_bytes for slot in slots.values()), len(units))
    first.run(units, combination.combine, batch=BATCH, threads=threads, advance=advance)
    found = [writer.found() for writer in writers]
    return [replace(each, inputs=found[0].inputs) for each in found]


def _units(slots: Mapping[str, Slot]) -> list[Unit]:
    """Blocks of floating tensors; integers are settled as a whole, which is one unit."""
    return [
        Unit(name, start, min(start + step, slot.num_elements))
        for name, slot in slots.items()
        for step in [BLOCK if slot.dtype in FLOATING else max(1, slot.num_elements)]
        for start in range(0, slot.num_elements, step)
    ]


class _Output:
    """One mixture, and the writer that takes it."""

    def __init__(self, writer: Writer, mixture: Mixture) -> None:
        self.writer, self.mixture = writer, mixture
        rows = mixture.used() or range(len(writer.sources))
        self.order = sorted(rows, key=lambda k: mixture.ingredients[k])

    def voters(self, name: str) -> list[Source]:
        """The used ingredients; of none, the first."""
        column, sources = self.mixture.column(name), self.writer.sources
        return [source for source, c in zip(sources, column, strict=True) if c != 0] or sources[:1]

    def judge(self, name: str, start: int, result: Array) -> None:
        """Non-finite values that every used ingredient holds alike (masks of −∞) stay; any other is an
        error."""
        bad = ~np.isfinite(result)
        sources = zip(self.writer.sources, self.mixture.column(name), strict=True)
        used = [source for source, c in sources if c != 0]
        found = held(used, name, start, result.size, bad)
        if is_mask(found):
            result[bad] = found[0]
            return
        refuse_non_finite(used, name, found)
        raise overflow(name, self.writer.slots[name].dtype)


class _Combination:
    """Mixtures of the same sources, and the buffers that each of the threads owns."""

    def __init__(self, outputs: Sequence[_Output]) -> None:
        self._outputs = outputs
        self._first = outputs[0].writer
        names = outputs[0].mixture.ingredients
        assert all(output.mixture.ingredients == names for output in outputs)
        rows = [set(output.order) for output in outputs]
        self._readers = [
            (k, [place for place, used in enumerate(rows) if k in used])
            for k in sorted(range(len(names)), key=names.__getitem__)
        ]
        """Each source with the outputs that take it: in the order of names, which is that of every output."""
        self._local = threading.local()

    def combine(self, unit: Unit) -> None:
        """Combine a block on the calling thread; integers are settled as a whole."""
        name, options, sources = unit.name, self._first.options, self._first.sources
        if self._first.slots[name].dtype not in FLOATING:
            for output in self._outputs:
                output.writer.settle(name, output.voters(name))
            return
        if not hasattr(self._local, "buffers"):
            self._local.buffers = _Buffers(options, len(self._outputs))
        buffers: _Buffers = self._local.buffers
        columns = [output.mixture.column(name) for output in self._outputs]
        read = [source.hashing(name, unit.start // BLOCK) for source in sources]
        written = [output.writer.hashing(unit) for output in self._outputs]
        for start in range(unit.start, unit.stop, options.chunk):
            size = min(options.chunk, unit.stop - start)
            totals, product, wide = buffers.sums(self._first.slots[name].dtype, size)
            for k, places in self._readers:
                values = sources[k].read(name, start, size, buffers.room.raw)
                read[k].update(values)
                if len(places) > 1 and product.dtype == np.float64:
                    np.copyto(wide, values, casting="unsafe")
                    values = wide
                for place in places:
                    first = k == self._outputs[place].order[0]
                    if first or columns[place][k] != 0:
                        _accumulate(totals[place], values, columns[place][k], product, first=first)
            for output, total, hashes in zip(self._outputs, totals, written, strict=True):
                if output.mixture.divisor != 1:
                    np.divide(total, output.mixture.divisor, out=total)
                judge = partial(output.judge, name, start)
                output.writer.write(name, start, total, buffers.room, hashes, judge)
        for hashes in (*read, *written):
            hashes.finish()


class _Buffers:
    """What one thread reuses for every chunk."""

    def __init__(self, options: StreamOptions, num_outputs: int) -> None:
        self.room = Room(options.chunk)
        self._options, self._num_outputs = options, num_outputs
        self._sums: dict[object, Array] = {}

    def sums(self, dtype: str, size: int) -> tuple[Array, Array, Array]:
        """Room for a sum of each output, a product, and what is read. Sums that are written as float64 are
        kept in the machine's long double: three times a float64 is no float64, and three equal models must
        give themselves."""
        wide = dtype == "F64" and self._options.accumulate == "float64"
        kind = np.longdouble if wide else self._options.accumulate
        if kind not in self._sums:
            num_rows = self._num_outputs + (2 if self._num_outputs > 1 else 1)
            self._sums[kind] = np.empty((num_rows, self._options.chunk), kind)
        rows = self._sums[kind][:, :size]
        return rows[: self._num_outputs], rows[self._num_outputs], rows[-1]


def _accumulate(total: Array, values: Array, coefficient: float, product: Array, *, first: bool) -> None:
    """total (+)= coefficient · values; ones are not multiplied, zeros of the first ingredient only clear."""
    if coefficient == 0:
        total[:] = 0
    elif coefficient == 1 and first:
        np.copyto(total, values, casting="unsafe")
    elif coefficient == 1 and values.dtype.itemsize >= 4:
        np.add(total, values, out=total, casting="unsafe")
    else:
        if values.dtype != product.dtype:
            np.copyto(product, values, casting="unsafe")
            values = product
        if coefficient != 1:
            values = np.multiply(values, coefficient, out=product)
        np.copyto(total, values) if first else np.add(total, values, out=total)
