"""The shared loop: schedules, folds, the choice of epochs, and going on where a killed run stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from soup.tiny import Data, ingredients, live

from soupkit.errors import DivergedError, TaskError
from soupkit.soup.fit import Fit, Learned, Settings, best_epoch, folds
from soupkit.soup.journal import Journal
from soupkit.soup.learned import Softmax
from soupkit.soup.mehl import HyperPlane
from soupkit.soup.schedule import rate
from soupkit.soup.subspace import Subspace

K, N = 4, 24


def run(
    journal: Journal, *, kind: str = "mehl", fail_after: int | None = None, **options: Any
) -> tuple[Fit, Learned]:
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

    settings = Settings(
        **({"epochs": 4, "batch_size": 8, "lr": 0.1, "piece": 8, "schedule": "cosine"} | options)
    )
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
    assert [outside.tolist() for _, outside in folds(23, 4, seed=2)] != [
        outside.tolist() for _, outside in parts
    ]


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
    again, relearned = run(
        resumed, kind=kind, fail_after=12 - fail_after
    )  # exactly the steps that were missing
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


def test_a_loss_that_grows_a_thousandfold_ends_the_run() -> None:
    learned = Learned()
    for loss in (0.015, 9.9):  # small beginnings may grow as far as a guess
        learned.check(loss)
    with pytest.raises(DivergedError, match="grew from") as error:
        learned.check(34.0)
    assert "--lr" in (error.value.hint or "")
    Learned(first=2.0).check(1999.0)


def test_published_warmup_and_milestones_are_whole_steps_and_epochs() -> None:
    assert [rate("cosine", step, 8, warmup=0.2) for step in range(2)] == [1.0, 1.0]  # int(1.6) steps rise
    by_epoch = [rate("step", step, 20, num_epochs=10) for step in range(0, 20, 2)]
    assert by_epoch == [1.0] * 5 + [0.1] * 3 + [0.01] * 2
    assert [rate("step", step, 4, num_epochs=2) for step in range(4)] == [1.0, 1.0, 0.1, 0.1]
    assert [rate("step", step, 4, num_epochs=1) for step in range(4)] == [1.0] * 4


def test_the_models_gradient_is_clipped_before_it_is_projected() -> None:
    """As `clip_grad_norm_(model.parameters(), 1)` in the code of MEHL-Soup: AdamW then sees a smaller
    gradient."""
    found = ingredients(K)
    space = Subspace(found, np.full((K, 4), 1 / K))
    for limit, expected in ((0.01, 0.01), (1e6, None)):
        settings = Settings(1, N, 0.1, N, clip_grad=limit, clips="model")
        fit = Fit(
            HyperPlane(space.norms, step="distance"), space, live(found), settings, Data(N), np.arange(N)
        )
        fit.run("all", stop_after=1)
        norm = float(torch.linalg.vector_norm(fit.model.gradient))
        assert norm == pytest.approx(expected, rel=1e-3) if expected else norm > 0.02
