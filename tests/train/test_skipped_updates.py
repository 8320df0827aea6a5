"""float16: an update that the scaler skips is none. It moves neither the schedule nor an average, and it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from soupkit.errors import DivergedError
from soupkit.recipe.train import Finetune
from soupkit.train.loop import HOPELESS, Updater


def updater(optimizer: str = "sgd", **options: Any) -> Updater:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
    recipe = Finetune(out=Path("x"), base="b", data="digits", amp="float16", optimizer=optimizer, lr=0.1, **options)
    return Updater(model, recipe, device=torch.device("cpu"), num_updates=10, updates_per_epoch=10)


def batch(size: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((4, 1, 8, 8), size), torch.eye(3)[[0, 1, 2, 0]]


TOO_LARGE, USUAL = batch(3e4), batch(0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_skipped_updates_move_nothing(optimizer: str, clip: float) -> None:
    update = updater(optimizer, clip_grad=clip)
    before = [parameter.clone() for parameter in update.model.parameters()]
    rate = update.optimizer.param_groups[0]["lr"]
    for _ in range(3):
        update(*TOO_LARGE)
        assert not update.stepped
    assert all(torch.equal(p, q) for p, q in zip(update.model.parameters(), before, strict=True))
    assert (update.num_done, update.num_skipped, update.num_tried) == (0, 3, 3)
    assert update.optimizer.param_groups[0]["lr"] == rate


def test_the_schedule_goes_on_where_it_stood() -> None:
    plain, skipping = updater(), updater()
    plain(*USUAL)
    for given in (TOO_LARGE, USUAL, TOO_LARGE):
        skipping(*given)
    assert plain.stepped
    assert (skipping.num_done, skipping.num_skipped) == (1, 2)
    assert skipping.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"] < 0.1


def test_nothing_but_skipped_updates_is_an_error() -> None:
    update, never = updater(), batch(float("nan"))
    for _ in range(HOPELESS - 1):
        update(*never)
    with pytest.raises(DivergedError, match=f"all {HOPELESS} updates were skipped") as caught:
        update(*never)
    assert "bfloat16" in str(caught.value.hint)
    fewer = updater()
    fewer(*TOO_LARGE)
    with pytest.raises(DivergedError, match="all 1 updates were skipped"):
        fewer.check_skipped()
    fewer(*USUAL)
    fewer.check_skipped()


def test_without_a_scaler_every_update_is_one() -> None:
    update = updater()
    update.scaler = torch.amp.GradScaler("cpu", enabled=False)
    update(*USUAL)
    assert update.stepped
    assert update.num_done == 1
