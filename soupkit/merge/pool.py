"""Batches of work on a pool of threads: in order, a bounded number ahead, the first failure ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Batch = TypeVar("Batch")


def run_batches(
    work: Callable[[Batch], int], batches: Iterator[Batch], *, threads: int, advance: Callable[[int], None]
) -> None:
    """Run `work` on every batch; `advance` is told what it returns. The first failure stops the rest and is
    raised."""
    with ThreadPoolExecutor(threads) as pool:
        pending: set[Future[int]] = set()
        try:
            for batch in batches:
                pending.add(pool.submit(work, batch))
                while len(pending) >= 4 * threads:
                    pending = _collect(pending, advance)
            while pending:
                pending = _collect(pending, advance)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _collect(pending: set[Future[int]], advance: Callable[[int], None]) -> set[Future[int]]:
    done, rest = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        advance(future.result())
    return rest
