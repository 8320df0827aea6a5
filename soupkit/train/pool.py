"""Worker processes that live as long as the work does, and no longer.

Forking a process that has run torch is unsafe, so a fork server, which only imports what the work needs,
makes the workers: torch and timm are imported once and not by each of them (spawned where there is no fork).
A worker takes one piece of work after another and computes with one thread. When the parent dies, by whatever
means, a watchdog ends it; Ctrl-C reaches the parent alone, which ends its workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from soupkit.errors import SoupkitError, TaskError, WorkerDiedError
from soupkit.events import Event, Report
from soupkit.exhausted import ran_out

Work = Callable[..., Any]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
GRACE_SECONDS = 10
FEWER = "lower --jobs or --batch-size; the same command continues where this ended"
HEAVY = "soupkit.task.images.models"
"""What every work of ours imports, with torch and timm: the fork server has it before the first worker."""


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

    process: BaseProcess
    connection: Connection
    busy_with: str = ""


OnFailure = Callable[[str, SoupkitError], tuple[Any, ...] | None]
"""What to do about a piece that failed: its arguments for another attempt, None to give it up, or raise to
end all."""


def raise_named(name: str, error: SoupkitError) -> None:
    """End everything at the first failure: the error keeps its type and gains the name of its piece."""
    raise type(error)(f"{name}: {error.message}", hint=error.hint) from error


class Execute(Protocol):
    """Calls `work(*arguments, report)` for every named piece, somewhere, and tells what became of each, in
    this thread.

    on_failure decides about a piece that raised a SoupkitError or whose worker died; anything else ends all.
    """

    def __call__(
        self,
        work: Work,
        pieces: Mapping[str, tuple[Any, ...]],
        *,
        on_event: Callable[[str, Event], None],
        on_result: Callable[[str, Any], None],
        on_failure: OnFailure,
    ) -> None: ...


def run_here(
    work: Work,
    pieces: Mapping[str, tuple[Any, ...]],
    *,
    on_event: Callable[[str, Event], None],
    on_result: Callable[[str, Any], None],
    on_failure: OnFailure = raise_named,
) -> None:
    """`Execute` in this process, one piece after another."""
    for name, piece in pieces.items():
        arguments: tuple[Any, ...] | None = piece
        while arguments is not None:
            try:
                value = work(*arguments, partial(on_event, name))
            except SoupkitError as error:
                arguments = on_failure(name, error)
            else:
                on_result(name, value)
                break


def run_in_processes(
    work: Work,
    pieces: Mapping[str, tuple[Any, ...]],
    *,
    num_processes: int,
    on_event: Callable[[str, Event], None],
    on_result: Callable[[str, Any], None],
    on_failure: OnFailure = raise_named,
) -> None:
    """Call `work(*arguments, report)` for every named piece, each in one of `num_processes` worker processes.

    `work` is a function of a module, arguments and results can be pickled. Events and results arrive here, in
    the parent, in the order of time. on_failure decides about a SoupkitError and about a worker that died,
    which is replaced by a new one; by default the first ends everything. Any other exception is a bug and
    ends everything as a TaskError. On any exception, KeyboardInterrupt included, no worker is left behind. A
    script that calls this needs `if __name__ == "__main__":`.
    """
    waiting = deque(pieces.items())
    with _workers(min(num_processes, len(pieces)), work) as workers:
        for worker in workers:
            _give(worker, waiting)
        while busy := [worker for worker in workers if worker.busy_with]:
            ready = wait([worker.connection for worker in busy])
            for worker in (worker for worker in busy if worker.connection in ready):
                name, message = worker.busy_with, _receive(worker)
                if isinstance(message, Result):
                    _give(worker, waiting)
                    on_result(name, message.value)
                elif isinstance(message, Failure):
                    if message.error is None:
                        raise TaskError(f"{name}: its worker process failed\n{message.trace}")
                    again = on_failure(name, message.error)
                    if again is not None:
                        waiting.appendleft((name, again))
                    if isinstance(message.error, WorkerDiedError):
                        worker.connection.close()
                        workers.remove(worker)
                        workers.append(worker := _started(work))
                    _give(worker, waiting)
                else:
                    on_event(name, message)


@contextmanager
def _workers(num_processes: int, work: Work) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for _ in range(num_processes):
            workers.append(_started(work))
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


def _started(work: Work) -> Worker:
    context = _context(work)
    ours, theirs = context.Pipe()
    environment = {**os.environ, **ONE_THREAD}
    process = context.Process(target=_serve, args=(theirs, work, environment), name="soupkit-worker")
    with _environment(ONE_THREAD), _without_interrupts():
        process.start()
    theirs.close()  # now the worker holds the only other end, and its death is an end of file
    return Worker(process, ours)


def _context(work: Work) -> ForkServerContext | SpawnContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([HEAVY, work.__module__])
    return context


def _give(worker: Worker, waiting: deque[tuple[str, tuple[Any, ...]]]) -> None:
    worker.busy_with = ""
    if waiting:
        worker.busy_with, arguments = waiting.popleft()
        with suppress(OSError):  # a worker that is gone by now is found out when it is heard
            worker.connection.send(arguments)


def _receive(worker: Worker) -> Event | Result | Failure:
    try:
        message: Event | Result | Failure = worker.connection.recv()
    except (EOFError, OSError):
        return Failure(_died(worker), "")
    return message


def _died(worker: Worker) -> WorkerDiedError:
    worker.process.join(GRACE_SECONDS)
    code = worker.process.exitcode
    how = (
        f"was killed by {signal.Signals(-code).name}"
        if code is not None and code < 0
        else f"ended with code {code}"
    )
    return WorkerDiedError(
        f"its worker process {how}",
        hint=f"if memory ran out, {FEWER}",
    )


def _serve(connection: Connection, work: Work, environment: Mapping[str, str]) -> None:
    """The worker's life: take arguments, report events, return a result or a failure, until the parent is
    gone.

    The fork server keeps the environment of its own start; a worker has its parent's of now. And whoever else
    started that server need not have blocked interrupts.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environment)
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
        except Exception as error:
            told = TaskError(f"memory ran out: {error}", hint=FEWER) if ran_out(error) else None
            connection.send(Failure(told, traceback.format_exc()))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Children start with these variables; OpenMP reads them before any code of ours could set a number of
    threads."""
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
    """Children inherit that SIGINT is blocked, from their first instruction on; here a Ctrl-C waits until the
    end."""
    resource_tracker.ensure_running()  # before: starting it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
