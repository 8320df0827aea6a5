"""Worker processes: what comes back, what a failure looks like, and that none outlives its work."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest
from train.toy_work import double, fail

from soupkit.errors import OutputError, TaskError
from soupkit.events import Event, Told
from soupkit.train.pool import run_in_processes


def ignore(_name: str, _value: Any) -> None:
    pass


@pytest.fixture(autouse=True)
def no_process_is_left() -> Any:
    yield
    assert multiprocessing.active_children() == []


def test_results_and_events_arrive_under_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    results: dict[str, Any] = {}
    events: list[tuple[str, Event]] = []
    run_in_processes(
        double,
        {f"piece-{i}": (i,) for i in range(5)},
        num_processes=2,
        on_event=lambda name, event: events.append((name, event)),
        on_result=results.__setitem__,
    )
    assert {name: value[0] for name, value in results.items()} == {f"piece-{i}": 2 * i for i in range(5)}
    assert sorted(events, key=lambda pair: pair[0]) == [
        (f"piece-{i}", Told(f"doubling {i}")) for i in range(5)
    ]
    pids = {value[1] for value in results.values()}
    assert len(pids) == 2, "workers live on from piece to piece"
    assert os.getpid() not in pids
    assert {value[2] for value in results.values()} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("user", OutputError, "^piece: the disk is full"),
        ("bug", TaskError, r"(?s)^piece: its worker process failed.*ZeroDivisionError: a bug"),
    ],
)
def test_a_failure_names_its_piece(how: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        run_in_processes(fail, {"piece": (how,)}, num_processes=1, on_event=ignore, on_result=ignore)


def test_a_killed_worker_ends_the_others_at_once() -> None:
    pieces = {"piece": ("killed",), "sleeper": ("sleep",)}  # which sleeps for an hour
    with pytest.raises(TaskError, match=r"^piece: its worker process was killed by SIGKILL"):
        run_in_processes(fail, pieces, num_processes=2, on_event=ignore, on_result=ignore)


def test_an_interrupt_reaches_the_parent_alone() -> None:
    """The workers ignore the terminal's SIGINT; the parent's KeyboardInterrupt ends them."""
    heard: list[str] = []

    def hear(name: str, _event: Event) -> None:
        heard.append(name)
        if len(heard) == 2:
            raise KeyboardInterrupt

    pieces = {"a": ("interrupted",), "b": ("interrupted",)}
    with pytest.raises(KeyboardInterrupt):
        run_in_processes(fail, pieces, num_processes=2, on_event=hear, on_result=ignore)
    assert sorted(heard) == ["a", "b"]  # and both would sleep for an hour
