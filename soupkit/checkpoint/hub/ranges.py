"""Reading far-away files a window at a time: ahead of the reader, in bounded memory."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

FetchRange = Callable[[Path, int, int], bytes]
NUM_KEPT = 8
"""Windows kept per checkpoint: two readers with two windows each, and two more ahead of each."""
NUM_AHEAD = 2
NUM_READERS = 2
"""Threads of the merge engine that this is made for; more would evict each other's windows."""
SMALLEST, LARGEST = 1 << 16, 1 << 22
BUFFER_BYTES = 256 << 20
"""Memory for all ingredients of a merge together."""


def window_bytes(num_ingredients: int) -> int:
    """Bytes of one window, a power of two, so that all ingredients together stay within BUFFER_BYTES."""
    share = BUFFER_BYTES // (NUM_KEPT * max(1, num_ingredients))
    return max(SMALLEST, min(LARGEST, 1 << (share.bit_length() - 1)))


class Windows:
    """The windows of one checkpoint's files that are being read, and those that will be read next.

    fetch(file, start, stop) gives bytes; it is called from threads of its own, once for each window as long
    as not more than NUM_READERS read at a time. What it raises, the reader sees. Memory: NUM_KEPT windows.
    """

    def __init__(self, fetch: FetchRange, *, window: int = LARGEST) -> None:
        self.window = window
        self._fetch = fetch
        self._kept: OrderedDict[tuple[Path, int], Future[bytes]] = OrderedDict()
        self._left: dict[tuple[Path, int], int] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(NUM_READERS * NUM_AHEAD, thread_name_prefix="hub")
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def read(self, file: Path, position: int, view: memoryview, *, size: int) -> None:
        """Fill `view` with the bytes of `file`, which has `size`, from `position` on. Thread-safe."""
        done = 0
        while done < len(view):
            index, offset = divmod(position + done, self.window)
            data = memoryview(self._at(file, index, size).result())
            piece = data[offset : offset + len(view) - done]
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._took(file, index, len(piece))

    def close(self) -> None:
        """Forget everything and fetch nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._kept.clear()

    def _took(self, file: Path, index: int, num_bytes: int) -> None:
        """A merge reads every byte once, so a window of which as many bytes were read as it has is not
        kept."""
        with self._lock:
            self._left[file, index] = self._left.get((file, index), 0) - num_bytes
            if self._left[file, index] <= 0:
                self._drop((file, index))

    def _drop(self, key: tuple[Path, int]) -> None:
        self._kept.pop(key, None)
        self._left.pop(key, None)

    def _at(self, file: Path, index: int, size: int) -> Future[bytes]:
        with self._lock:
            wanted = self._ask(file, index, size)
            for ahead in range(index + 1, min(index + 1 + NUM_AHEAD, -(-size // self.window))):
                self._ask(file, ahead, size)
            self._kept.move_to_end((file, index))
            while len(self._kept) > NUM_KEPT:
                self._drop(next(iter(self._kept)))
            return wanted

    def _ask(self, file: Path, index: int, size: int) -> Future[bytes]:
        key = (file, index)
        if key not in self._kept:
            start = index * self.window
            stop = min(start + self.window, size)
            self._kept[key] = self._pool.submit(self._fetch, file, start, stop)
            self._left[key] = stop - start
        return self._kept[key]
