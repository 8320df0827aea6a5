"""The shared loop: schedules, folds, the choice of epochs, and going on where a killed run stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from soup.tiny import Data, ingredients, live

from soupkit.errors import TaskError
from soupkit.soup.fit import Fit, Learned, Settings, best_epoch, folds
from soupkit.soup.journal import Journal
from soupkit.soup.learned import Softmax
from soupkit.soup.mehl import HyperPlane
from soupkit.soup.schedule import rate
from soupkit.soup.subspace import Subspace

K, N = 4, 24


def run(journal: Journal, *, kind: str = "mehl", fail_after: int | None = None, **options: Any) -> tuple[Fit, Learned]:
    """A run that may be cut off after some steps, as if the process had died."""
    found = ingredients(K)
    space = Subspace(found, np.full((K, 4), 1 / K))
    data, reads = Data(N), 0

    def read(pieces: list[np.ndarray], epoch: int) -> Any:
        nonlocal reads
        reads += 1
        if fail_after is not None and reads > fail_after:
            raise KeyboardInterrupt
        return data(pieces, epoch)

    settings = Settings(**({"epochs": 4, "batch_size": 8, "lr": 0.1, "piece": 8, "schedule": "cosine"} | options))
    coordinates = Softmax(K, 4) if kind == "softmax" else HyperPlane(space.norms)
    fit = Fit(coordinates, space, live(found), settings, read, np.arange(N), (), journal)
    return fit, fit.run("all", before_epoch=lambda: None)


def test_schedules_are_as_published() -> None:
    steps = 20
    cosine = [rate("cosine", step, steps, warmup=0.2) for step in range(steps)]
    assert cosine[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert cosine[12] == pytest.approx(0.5)
    assert 0 < cosine[19] < 0.01
    by_step = [rate("step", step, steps) for step in range(steps)]
    assert by_step == [1.0] * 10 + [0.1] * 5 + [0.01] * 5
    assert [rate("linear", step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert {rate("constant", step, 4) for step in range(4)} == {1.0}


def test_folds_score_every_example_once_and_never_what_they_learned() -> None:
    parts = folds(23, 4, seed=1)
    assert sorted(np.concatenate([outside for _, outside in parts]).tolist()) == list(range(23))
    for inside, outside in parts:
        assert not set(inside) & set(outside)
        assert len(inside) + len(outside) == 23
    assert [outside.tolist() for _, outside in folds(23, 4, seed=2)] != [outside.tolist() for _, outside in parts]


def test_the_best_number_of_epochs_is_that_of_the_mean_over_folds() -> None:
    assert best_epoch([[0.5, 0.9, 0.6], [0.5, 0.6, 0.8]]) == (1, pytest.approx([0.5, 0.75, 0.7]))
    assert best_epoch([[0.5, 0.4], [0.5, 0.4, 0.3]])[0] == 0
    assert best_epoch([[0.5, 0.7], [0.5, 0.5, 0.9]])[0] == 2  # a fold that ended early keeps its last score
    assert best_epoch([[2.0, 1.0, 3.0]], lower_is_better=True)[0] == 1


def test_the_run_may_end_before_the_schedule_does() -> None:
    """Stopping after two of four epochs is the first half of the same run, not a run with its own cosine."""
    found = ingredients(K)
    space = Subspace(found, np.full((K, 4), 1 / K))
    settings = Settings(epochs=4, batch_size=8, lr=0.1, piece=8, schedule="cosine")
    losses = []
    for stop in (2, 4):
        fit = Fit(HyperPlane(space.norms), space, live(found), settings, Data(N), np.arange(N))
        losses.append(fit.run("all", stop_after=stop).losses)
    assert len(losses[0]) == 2
    assert losses[1][:2] == losses[0]


def test_patience_ends_a_run() -> None:
    found = ingredients(K)
    space = Subspace(found, np.full((K, 4), 1 / K))
    settings = Settings(epochs=9, batch_size=8, lr=0.1, piece=8)
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    fit = Fit(HyperPlane(space.norms), space, live(found), settings, Data(N), np.arange(N))
    learned = fit.run("all", after_epoch=lambda: next(scores), patience=2)
    assert learned.scores == [0.1, 0.5, 0.4, 0.3]
    assert len(learned.losses) == 3


@pytest.mark.parametrize("kind", ["mehl", "softmax"])
@pytest.mark.parametrize("fail_after", [4, 7, 9])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    kind: str, fail_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soupkit.soup.journal.INTERVAL", 0.0)  # keep every step
    whole, learned = run(Journal(None, ""), kind=kind)
    path = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        run(Journal(path, "same"), kind=kind, fail_after=fail_after)
    resumed = Journal(path, "same")
    assert resumed.resumed
    again, relearned = run(resumed, kind=kind, fail_after=12 - fail_after)  # exactly the steps that were missing
    assert relearned.losses == learned.losses
    for a, b in zip(whole.coordinates.parameters, again.coordinates.parameters):
        assert torch.equal(a, b)
    assert torch.equal(whole.model.weights, again.model.weights)


def test_a_journal_of_another_search_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, "a").finish("stage", {"x": 1})
    assert Journal(path, "a").result("stage") == {"x": 1}
    assert Journal(path, "b").result("stage") is None
    assert not Journal(path, "b").resumed
    path.write_bytes(path.read_bytes()[:50])
    assert Journal(path, "a").result("stage") is None


def test_a_journal_is_written_whole_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "out" / "journal"
    journal = Journal(path, "a")
    journal.keep("stage", {"coordinates": [torch.ones(2)], "epoch": 3})
    state = Journal(path, "a").state("stage")
    assert state["epoch"] == 3
    assert Journal(path, "a").state("other") is None
    assert [entry.name for entry in path.parent.iterdir()] == ["journal"]
    journal.remove()
    assert not path.exists()


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(TaskError, match="the loss became nan") as error:
        run(Journal(None, ""), lr=float("inf"))
    assert "--lr" in (error.value.hint or "")
