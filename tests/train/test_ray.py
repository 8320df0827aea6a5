"""A sweep on Ray: skipped where Ray is not installed; the logic of retries is tested with fakes in
test_retries.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train.small import contents, litter, sweep_recipe
from train.toy_work import die_once, double, fail

from soupkit.errors import OutputError, RecipeError, SoupkitError, TaskError, WorkerDiedError
from soupkit.events import Event, Told, Warned, silent
from soupkit.jobs.training.sweep import finetune_sweep
from soupkit.train import ray_pool
from soupkit.world import World


def test_without_ray_it_says_what_to_install(
    sweep_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "find_spec", lambda _: None)
    for dry_run in (True, False):
        with pytest.raises(RecipeError, match="ray is not installed") as caught:
            finetune_sweep(
                sweep_recipe(sweep_base, tmp_path / "sweep", ray="local", dry_run=dry_run),
                World("cpu"),
                silent,
            )
        assert "soupkit[ray]" in str(caught.value.hint)
    assert not list(tmp_path.glob("sweep/run-*"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One small cluster for all tests, as if it were somebody else's."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # its workers import the toy work
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        yield found.address
        found.shutdown()


def run(
    cluster: str, work: Any, pieces: dict[str, tuple[Any, ...]], **options: Any
) -> tuple[dict[str, Any], Any]:
    results: dict[str, Any] = {}
    events: list[tuple[str, Event]] = []
    ray_pool.run_on_ray(
        work,
        pieces,
        on_event=lambda name, event: events.append((name, event)),
        on_result=results.__setitem__,
        address=cluster,
        **options,
    )
    return results, events


pytestmark = pytest.mark.filterwarnings("ignore")


def test_results_and_events_arrive_under_their_names(cluster: str) -> None:
    results, events = run(cluster, double, {f"piece-{i}": (i,) for i in range(4)}, device="cpu")
    assert {name: value[0] for name, value in results.items()} == {f"piece-{i}": 2 * i for i in range(4)}
    assert all(value[2] == "1" for value in results.values()), "one thread each"
    assert sorted(events, key=lambda event: event[0]) == [
        (f"piece-{i}", Told(f"doubling {i}")) for i in range(4)
    ]  # fmt: skip


def test_failures_keep_their_kind(cluster: str) -> None:
    with pytest.raises(OutputError, match=r"^piece: the disk is full"):
        run(cluster, fail, {"piece": ("user",)})
    with pytest.raises(TaskError, match=r"(?s)^piece: its Ray task failed.*ZeroDivisionError: a bug"):
        run(cluster, fail, {"piece": ("bug",)})


def test_a_dead_worker_is_retried(cluster: str, tmp_path: Path) -> None:
    pieces = {name: (str(tmp_path / name), name == "b") for name in "abc"}
    failed: list[str] = []

    def on_failure(name: str, error: SoupkitError) -> tuple[Any, ...]:
        assert isinstance(error, WorkerDiedError)
        failed.append(name)
        return pieces[name]

    results, _ = run(cluster, die_once, pieces, on_failure=on_failure)
    assert failed == ["b"]
    assert results == {"a": "done", "b": "done", "c": "done"}


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(TaskError, match=r"the Ray cluster '127\.0\.0\.1:9' cannot be reached"):
        run("127.0.0.1:9", double, {"piece": (1,)})


def test_a_sweep_whose_worker_is_killed_ends_complete_with_the_same_bits(
    cluster: str, sweep_base: Path, tmp_path: Path
) -> None:
    """SIGKILL to the process that trains run-001, once; a run's temporary directory bears its writer's
    number."""
    values = {"num_runs": 2, "epochs": "25"}
    finetune_sweep(sweep_recipe(sweep_base, tmp_path / "here", **values), World("cpu"), silent)
    there, killed = sweep_recipe(sweep_base, tmp_path / "there", ray=cluster, **values), list[int]()
    warnings: list[str] = []

    def report(event: Event) -> None:
        if isinstance(event, Warned):
            warnings.append(event.message)
        for path in [] if killed else there.out.glob(".run-001.soupkit-*"):
            killed.append(int(path.name.rpartition("soupkit-")[2].split("-")[0]))
            os.kill(killed[0], signal.SIGKILL)

    result = finetune_sweep(there, World("cpu"), report)
    assert len(killed) == 1
    assert len(warnings) == 1
    assert warnings[0].startswith("run-001: its Ray worker died")
    assert result["notes"]["members"] == ["run-000", "run-001"]
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert litter(tmp_path / "there") == []
