"""float16: an update that the scaler skips is none. It moves neither the schedule nor an average, and it is
told."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from task.fake import Fake, Rows
from torch import nn
from train.small import finetune_recipe, small_model, task_of

from soupkit.errors import DivergedError
from soupkit.events import Event, Measured, Warned
from soupkit.merge.running import Swa
from soupkit.recipe.train import Finetune
from soupkit.task.images.data import Splits
from soupkit.train.averaging import Averaging
from soupkit.train.loop import HOPELESS, Updater, fit


def updater(optimizer: str = "sgd", **options: Any) -> Updater:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
    recipe = Finetune(
        out=Path("x"), base="b", data="digits", amp="float16", optimizer=optimizer, lr=0.1, **options
    )
    task = Fake(model, loss=partial(nn.functional.cross_entropy, reduction="sum"))
    return Updater(task, recipe, num_updates=10, updates_per_epoch=10)


def batch(size: float) -> Rows:
    return Rows(torch.full((4, 1, 8, 8), size), torch.eye(3)[[0, 1, 2, 0]])


TOO_LARGE, USUAL = batch(3e4), batch(0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_skipped_updates_move_nothing(optimizer: str, clip: float) -> None:
    update = updater(optimizer, clip_grad=clip)
    before = [parameter.clone() for parameter in update.task.model.parameters()]
    rate = update.optimizer.param_groups[0]["lr"]
    for _ in range(3):
        update(TOO_LARGE)
        assert not update.stepped
    assert all(torch.equal(p, q) for p, q in zip(update.task.model.parameters(), before, strict=True))
    assert (update.num_done, update.num_skipped, update.num_tried) == (0, 3, 3)
    assert update.optimizer.param_groups[0]["lr"] == rate


def test_the_schedule_goes_on_where_it_stood() -> None:
    plain, skipping = updater(), updater()
    plain(USUAL)
    for given in (TOO_LARGE, USUAL, TOO_LARGE):
        skipping(given)
    assert plain.stepped
    assert (skipping.num_done, skipping.num_skipped) == (1, 2)
    assert skipping.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"] < 0.1


def test_nothing_but_skipped_updates_is_an_error() -> None:
    update, never = updater(), batch(float("nan"))
    for _ in range(HOPELESS - 1):
        update(never)
    with pytest.raises(DivergedError, match=f"all {HOPELESS} updates were skipped") as caught:
        update(never)
    assert "bfloat16" in str(caught.value.hint)
    fewer = updater()
    fewer(TOO_LARGE)
    with pytest.raises(DivergedError, match="all 1 updates were skipped"):
        fewer.check_skipped()
    fewer(USUAL)
    fewer.check_skipped()


def test_without_a_scaler_every_update_is_one() -> None:
    update = updater()
    update.scaler = torch.amp.GradScaler("cpu", enabled=False)
    update(USUAL)
    assert update.stepped
    assert update.num_done == 1


class Skipping:
    """A scaler that finds some gradients infinite: it leaves the optimizer alone and lowers its scale."""

    skipped: tuple[int, ...] = ()

    def __init__(self, _device: str, *, enabled: bool) -> None:
        assert enabled
        self.number, self.now = 0, 2.0**16

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def get_scale(self) -> float:
        return self.now

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.number += 1
        if self.number in self.skipped:
            self.now /= 2
        else:
            optimizer.step()

    def update(self) -> None:
        """The scale has moved already."""


def fitted(
    digits: Splits, monkeypatch: pytest.MonkeyPatch, *skipped: int
) -> tuple[Averaging, float, list[str]]:
    """14 updates of a tiny model; its average, its last learning rate, the warnings, and what a manifest
    would note."""
    monkeypatch.setattr(Skipping, "skipped", skipped)
    monkeypatch.setattr(torch.amp, "GradScaler", Skipping)
    events: list[Event] = []
    model = small_model()
    average = Averaging(model, Swa())
    found = fit(
        task_of(model, digits), finetune_recipe(amp="float16"), report=events.append, averages=[average]
    )  # fmt: skip
    rates = [event.value for event in events if isinstance(event, Measured) and event.name == "train/lr"]
    assert found.notes == {"loss": found.losses} | ({"num_skipped": len(skipped)} if skipped else {})
    return average, rates[-1], [event.message for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize("skipped", [(3,), (1, 2), (14,), (5, 8, 13)])
def test_a_whole_training_leaves_them_out(
    digits: Splits, monkeypatch: pytest.MonkeyPatch, skipped: tuple[int, ...]
) -> None:
    whole, lowest, nothing = fitted(digits, monkeypatch)
    average, rate, warnings = fitted(digits, monkeypatch, *skipped)
    assert nothing == []
    assert warnings == [
        f"{len(skipped)} of 14 updates were skipped: their gradients were not finite in float16"
    ]
    assert whole.num_steps == 14
    assert average.num_steps == 14 - len(skipped)
    assert rate > lowest  # the schedule has not come to its end
