"""Streams and events of the stand-in: what has waited for what, and what was touched without.

Every stream counts its kernels, and knows up to which kernel it has waited for each other stream (a vector
clock: Mattern 1989). Two accesses of overlapping memory, one of them a write, must be ordered so.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

METADATA_ONLY = re.compile(r"aten::(new_.*|.*_like|record_stream|set_data|detach)$")
Clock = dict[int, int]


@dataclass
class Use:
    """Who touched a stretch of memory: the last write, and the last read of every stream since."""

    write: tuple[int, int] | None = None
    reads: Clock = field(default_factory=dict)


@dataclass
class Block:
    """A storage: the stream that allocated it, streams that were recorded, and the uses of its stretches."""

    stream: int
    recorded: set[int] = field(default_factory=set)
    uses: dict[tuple[int, int], Use] = field(default_factory=lambda: defaultdict(Use))


class Streams:
    """All streams of the device; `current` is that which kernels are queued on."""

    def __init__(self) -> None:
        self.numbers = count(1)
        self.clocks: dict[int, Clock] = defaultdict(dict)
        self.blocks: dict[int, Block] = {}
        self.free: dict[int, list[Block]] = defaultdict(list)
        self.pinned: dict[int, StorageWeakRef] = {}
        self.waiting: list[tuple[int, int, Tensor, Tensor]] = []
        self.default = self.current = Stream(self, 0)
        self.num_waits = 0
        self.entered: list[int] = []

    def allocated(self, address: int) -> None:
        """The current stream takes memory, be it what was freed: every other use of that must lie before."""
        stream = self.current.number
        for block in self.free.pop(stream, ()):
            for use in block.uses.values():
                for other, seq in (*use.reads.items(), *([use.write] if use.write else ())):
                    if other not in block.recorded:
                        self._ordered(stream, other, seq, "takes memory that was freed while it was in use")
        self.blocks[address] = Block(stream)

    def filled(self, tensor: Tensor) -> None:
        """The current stream writes what it has taken."""
        self._touch(tensor, *self._next(), writes=True, what="what was just made")

    def freed(self, address: int) -> None:
        """A block goes back to the stream that allocated it."""
        block = self.blocks.pop(address)
        self.free[block.stream].append(block)

    def recorded(self, address: int, stream: Stream) -> None:
        self.blocks[address].recorded.add(stream.number)

    def launched(self, func: Any, args: Any, kwargs: Any, result: Any, has: Callable[[Tensor], bool]) -> None:
        """A kernel on the current stream. Raises RuntimeError for a race."""
        if METADATA_ONLY.match(func._schema.name):
            return
        number, seq = self._next()
        given = dict(zip((each.name for each in func._schema.arguments), args)) | kwargs
        for argument in func._schema.arguments:
            alias = argument.alias_info
            if alias is None or alias.is_write:
                for tensor in _tensors(given.get(argument.name), has):
                    self._touch(tensor, number, seq, writes=alias is not None, what=str(func))
        if all(each.alias_info is None for each in func._schema.returns):
            for tensor in _tensors(result, has):
                self._touch(tensor, number, seq, writes=True, what=str(func))

    def _next(self) -> tuple[int, int]:
        number = self.current.number
        seq = self.clocks[number][number] = self.clocks[number].get(number, 0) + 1
        return number, seq

    def _touch(self, tensor: Tensor, stream: int, seq: int, *, writes: bool, what: str) -> None:
        from cuda.stand_in import storage_of

        if tensor.numel() == 0 or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return
        block = self.blocks[storage_of(tensor)._cdata]
        start = tensor.data_ptr()
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        stretch = start, start + extent * tensor.element_size()
        for (first, end), use in block.uses.items():
            if first < stretch[1] and stretch[0] < end:
                if use.write:
                    self._ordered(stream, *use.write, f"{what} after a write")
                for other, number in use.reads.items() if writes else ():
                    self._ordered(stream, other, number, f"{what} writes after a read")
        if writes:
            block.uses[stretch] = Use((stream, seq))
        else:
            block.uses[stretch].reads[stream] = seq

    def _ordered(self, stream: int, other: int, seq: int, what: str) -> None:
        if stream != other and self.clocks[stream].get(other, 0) < seq:
            raise RuntimeError(f"race: stream {stream}, which has not waited for stream {other}: {what}")

    def pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.pinned[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.pinned

    def later(self, target: Tensor, source: Tensor) -> None:
        """A copy to the CPU that the current stream makes when it comes to it."""
        number = self.current.number
        self.waiting.append((number, self.clocks[number].get(number, 0), target, source))

    def arrive(self, clock: Clock) -> None:
        """The CPU has waited for all kernels up to these; nothing that is queued later may lie before."""
        self.num_waits += 1
        done = [each for each in self.waiting if each[1] <= clock.get(each[0], 0)]
        self.waiting = [each for each in self.waiting if each[1] > clock.get(each[0], 0)]
        for _, _, target, source in done:
            target.copy_(source)
        for own in self.clocks.values():
            join(own, clock)

    def synchronize(self, stream: Stream | None = None) -> None:
        self.arrive(dict(self.clocks[(stream or self.current).number]))

    def synchronize_all(self) -> None:
        everything: Clock = {}
        for clock in self.clocks.values():
            join(everything, clock)
        self.arrive(everything)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """`torch.cuda.stream`."""
        before, self.current = self.current, stream
        self.entered.append(stream.number)
        try:
            yield
        finally:
            self.current = before


class Stream:
    """`torch.cuda.Stream`."""

    def __init__(self, streams: Streams, number: int) -> None:
        self.streams, self.number = streams, number
        if number:  # what was queued on a new stream has waited for nothing
            streams.clocks[number] = {}

    def wait_stream(self, other: Stream) -> None:
        join(self.streams.clocks[self.number], self.streams.clocks[other.number])

    def wait_event(self, event: Event) -> None:
        join(self.streams.clocks[self.number], event.clock)

    def synchronize(self) -> None:
        self.streams.synchronize(self)

    def is_capturing(self) -> bool:
        return False


class Event:
    """`torch.cuda.Event`."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = dict(self.streams.clocks[(stream or self.streams.current).number])

    def synchronize(self) -> None:
        self.streams.arrive(self.clock)


def join(clock: Clock, other: Clock) -> None:
    for stream, seq in other.items():
        clock[stream] = max(clock.get(stream, 0), seq)


def _tensors(value: Any, has: Callable[[Tensor], bool]) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor) and has(each)]
