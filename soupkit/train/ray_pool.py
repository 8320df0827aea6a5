"""Work on a Ray cluster: `pool.run_in_processes` for many machines. Ray is optional: pip install
'soupkit[ray]'.

Outputs are written where the command's are, so the machines must share that file system.
"""

from __future__ import annotations

import socket
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from soupkit.errors import RecipeError, SoupkitError, TaskError, WorkerDiedError
from soupkit.events import Event
from soupkit.train.pool import ONE_THREAD, Failure, OnFailure, Result, Work, raise_named
from soupkit.world import available_cores

LOCAL = "local"
POLL_SECONDS = 0.5
CONNECT_SECONDS = 10
MACHINE = "machines that have soupkit installed, in the same version, and share the file system"


def require_ray() -> None:
    """Raise RecipeError when Ray is not installed."""
    if find_spec("ray") is None:
        raise RecipeError("ray is not installed", hint="pip install 'soupkit[ray]', or leave --ray out")


def run_on_ray(
    work: Work,
    pieces: Mapping[str, tuple[Any, ...]],
    *,
    on_event: Callable[[str, Event], None],
    on_result: Callable[[str, Any], None],
    on_failure: OnFailure = raise_named,
    address: str,
    num_at_a_time: int = 0,
    device: str = "auto",
) -> None:
    """Call `work(*arguments, report)` for every named piece, each as a Ray task with one CPU (and a GPU, if
    it is to).

    address: of a running cluster (auto, host:port, ray://host:port), or "local": a cluster of this machine
    for as long as this takes. num_at_a_time: 0 takes as many as the cluster has CPUs. A worker or a node that
    dies is a WorkerDiedError, about which on_failure decides, as about any SoupkitError; retries are ours,
    not Ray's, since the caller may change the arguments. Events arrive here. On any exception what is under
    way is cancelled. Raises RecipeError without Ray, TaskError when the cluster cannot be reached.
    """
    require_ray()
    import ray
    from ray.util.queue import Queue

    with _cluster(address, num_at_a_time):
        events = Queue(actor_options={"num_cpus": 0})
        submit = _submitter(work, events, device)
        limit = num_at_a_time or max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, under_way = deque(pieces.items()), dict[Any, str]()
        try:
            while waiting or under_way:
                while waiting and len(under_way) < limit:
                    name, arguments = waiting.popleft()
                    under_way[submit(name, arguments)] = name
                ready, _ = ray.wait(list(under_way), timeout=POLL_SECONDS)
                _forward(events, on_event)
                for reference in ready:
                    name = under_way.pop(reference)
                    outcome = _outcome(reference)
                    if isinstance(outcome, Result):
                        on_result(name, outcome.value)
                        continue
                    if outcome.error is None:
                        raise TaskError(f"{name}: its Ray task failed\n{outcome.trace}")
                    again = on_failure(name, outcome.error)
                    if again is not None:
                        waiting.appendleft((name, again))
        finally:
            for reference in under_way:
                ray.cancel(reference, force=True)
            events.shutdown(force=True)


@contextmanager
def _cluster(address: str, num_at_a_time: int) -> Iterator[None]:
    """A connection to the cluster, or a cluster of this machine; both end with the context."""
    import ray

    _check_listening(address)
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {"num_cpus": num_at_a_time or available_cores(), "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level="ERROR", configure_logging=True)
    except Exception as error:  # Ray raises what its parts raise
        raise _unreachable(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Ray itself waits five minutes for a cluster that is not there."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> TaskError:
    hint = "give the address that `ray start` printed, auto on a machine of the cluster, or --ray local"
    return TaskError(f"the Ray cluster {address!r} cannot be reached: {_first_line(error)}", hint=hint)


def _submitter(work: Work, events: Any, device: str) -> Callable[[str, tuple[Any, ...]], Any]:
    import ray

    gpus = 1 if device != "cpu" and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(
        num_cpus=1, num_gpus=gpus, max_retries=0, max_calls=1, runtime_env={"env_vars": dict(ONE_THREAD)}
    )(_work)
    return lambda name, arguments: task.remote(work, name, arguments, events)


def _work(work: Work, name: str, arguments: tuple[Any, ...], events: Any) -> Result | Failure:
    """One piece, on some machine of the cluster."""
    try:
        return Result(work(*arguments, lambda event: events.put((name, event))))
    except SoupkitError as error:
        return Failure(error, "")
    except Exception:
        return Failure(None, traceback.format_exc())


def _outcome(reference: Any) -> Result | Failure:
    """What became of a task; a worker or node that is gone is a failure that may be tried again."""
    import ray

    try:
        outcome: Result | Failure = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # before our own code ran: an import, an argument
        raise TaskError(
            f"a Ray worker cannot do the work: {_first_line(error)}", hint=f"use only {MACHINE}"
        ) from error
    except ray.exceptions.RayError as error:
        return Failure(WorkerDiedError(f"its Ray worker died: {_first_line(error)}"), "")
    return outcome


def _first_line(error: Exception) -> str:
    return (str(getattr(error, "cause", error)).splitlines() or [type(error).__name__])[0]


def _forward(events: Any, on_event: Callable[[str, Event], None]) -> None:
    """Hand over the events that have arrived."""
    while not events.empty():
        for name, event in events.get_nowait_batch(min(events.qsize(), 100)):
            on_event(name, event)
