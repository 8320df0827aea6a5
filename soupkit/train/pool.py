"""Worker processes that live as long as the work does, and no longer.

Each worker is spawned (forking a process that has run torch is unsafe), imports torch once and then takes one piece of
work after another. It computes with one thread. When the parent dies, by whatever means, a watchdog ends it; Ctrl-C
reaches the parent alone, which ends its workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from soupkit.errors import SoupkitError, TaskError
from soupkit.events import Event, Report

Work = Callable[..., Any]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
GRACE_SECONDS = 10


@dataclass(frozen=True)
class Result:
    """What a piece of work returned."""

    value: Any


@dataclass(frozen=True)
class Failure:
    """What it raised: an error for the user, or a bug's traceback."""

    error: SoupkitError | None
    trace: str


@dataclass
class Worker:
    """One process, the parent's end of its pipe, and the name of what it works on."""

    process: SpawnProcess
    connection: Connection
    busy_with: str = ""


def run_in_processes(
    work: Work,
    pieces: Mapping[str, tuple[Any, ...]],
    *,
    num_processes: int,
    on_event: Callable[[str, Event], None],
    on_result: Callable[[str, Any], None],
) -> None:
    """Call `work(*arguments, report)` for every named piece, each in one of `num_processes` worker processes.

    `work` is a function of a module, arguments and results can be pickled. Events and results arrive here, in the
    parent, in the order of time. The first failure ends everything: a SoupkitError keeps its type and gains the name
    of its piece; anything else, and a worker that dies, becomes a TaskError. On any exception, KeyboardInterrupt
    included, no worker is left behind. A script that calls this needs `if __name__ == "__main__":`.
    """
    waiting = iter(pieces.items())
    with _workers(min(num_processes, len(pieces)), work) as workers:
        for worker in workers:
            _give(worker, next(waiting, None))
        while busy := [worker for worker in workers if worker.busy_with]:
            ready = wait([worker.connection for worker in busy])
            for worker in (worker for worker in busy if worker.connection in ready):
                message = _receive(worker)
                if isinstance(message, Result):
                    name = worker.busy_with
                    _give(worker, next(waiting, None))
                    on_result(name, message.value)
                else:
                    on_event(worker.busy_with, message)


@contextmanager
def _workers(num_processes: int, work: Work) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        with _environment(ONE_THREAD), _without_interrupts():
            for _ in range(num_processes):
                workers.append(_start(work))
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(GRACE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()


def _start(work: Work) -> Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work), name="soupkit-worker")
    process.start()
    theirs.close()  # now the worker holds the only other end, and its death is an end of file
    return Worker(process, ours)


def _give(worker: Worker, piece: tuple[str, tuple[Any, ...]] | None) -> None:
    worker.busy_with = piece[0] if piece else ""
    if piece:
        try:
            worker.connection.send(piece[1])
        except OSError:
            raise _died(worker) from None


def _receive(worker: Worker) -> Event | Result:
    try:
        message = worker.connection.recv()
    except (EOFError, OSError):
        raise _died(worker) from None
    if isinstance(message, Failure):
        raise _named(worker.busy_with, message)
    result: Event | Result = message
    return result


def _named(name: str, failure: Failure) -> SoupkitError:
    if failure.error is not None:
        return type(failure.error)(f"{name}: {failure.error.message}", hint=failure.error.hint)
    return TaskError(f"{name}: its worker process failed\n{failure.trace}")


def _died(worker: Worker) -> TaskError:
    worker.process.join(GRACE_SECONDS)
    code = worker.process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    return TaskError(
        f"{worker.busy_with}: its worker process {how}",
        hint="if memory ran out, lower --jobs or --batch-size; the same command continues where this ended",
    )


def _serve(connection: Connection, work: Work) -> None:
    """The worker's life: take arguments, report events, return a result or a failure, until the parent is gone."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    report: Report = connection.send
    while True:
        try:
            arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(Result(work(*arguments, report)))
        except SoupkitError as error:
            connection.send(Failure(error, ""))
        except Exception:
            connection.send(Failure(None, traceback.format_exc()))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Children start with these variables; OpenMP reads them before any code of ours could set a number of threads."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Children inherit that SIGINT is blocked, from their first instruction on; here a Ctrl-C waits until the end."""
    resource_tracker.ensure_running()  # before: starting it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
