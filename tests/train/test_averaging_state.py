"""Averaging: exact swaps and resumes, the same bits beside the training, and refusals where a mistake is
silent."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from train.noise import copy_of, equal, training
from train.small import small_model

from soupkit.errors import TaskError
from soupkit.merge.running import Ema
from soupkit.train.averaging import Averaging


@pytest.mark.parametrize("buffers", ["average", "copy", "refresh"])
def test_swapping_changes_weights_and_buffers_and_nothing_for_good(buffers: Any) -> None:
    model = small_model()
    averaging = Averaging(model, Ema(0.5), buffers=buffers)
    for _ in training(model, 4):
        averaging.update()
    raw, average = copy_of(model.state_dict()), copy_of(averaging.tensors())
    with averaging.swapped():
        inside = copy_of(dict(model.named_parameters()) | dict(model.named_buffers()))
        model.conv.weight.data.zero_()  # whoever trains now loses it
    assert equal({name: inside[name] for name in average}, average)
    assert torch.equal(average["norm.running_var"], raw["norm.running_var"]) == (buffers != "average")
    assert not torch.equal(average["conv.weight"], raw["conv.weight"])
    assert equal(model.state_dict(), raw)
    assert equal(averaging.tensors(), average)
    with pytest.raises(ZeroDivisionError), averaging.swapped():
        raise ZeroDivisionError
    assert equal(model.state_dict(), raw)


def test_nothing_is_saved_or_trained_while_swapped() -> None:
    model = small_model()
    averaging = Averaging(model, Ema(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averaging.attach(optimizer)
    averaging.update()
    saved = averaging.state()
    with averaging.swapped():
        for refused in (
            averaging.state, averaging.update, averaging.tensors, averaging.averaged_state, model.state_dict,
            optimizer.step, lambda: averaging.load(saved),
        ):  # fmt: skip
            with pytest.raises(TaskError):
                refused()
    assert model.state_dict().keys() == averaging.state()["average"].keys() | {"norm.num_batches_tracked"}


def test_a_resumed_average_goes_on_exactly() -> None:
    """The warmup depends on the number of steps, which others lose on a resume."""
    rule = Ema(0.99, gamma=1.0, every=2, start=1)
    model = small_model()
    averaging = Averaging(model, rule)
    halfway: dict[str, Any] = {}
    for step in training(model, 10):
        averaging.update()
        if step == 4:
            halfway = deepcopy({"model": model.state_dict(), "average": averaging.state()})
    again = small_model(seed=5)
    again.load_state_dict(halfway["model"])
    resumed = Averaging(again, rule)
    resumed.load(halfway["average"])
    for _ in training(again, 5, first=5):
        resumed.update()
    assert resumed.num_steps == 10
    assert resumed.tensors()["conv.weight"].stride() == again.conv.weight.stride()
    assert equal(again.state_dict(), model.state_dict())
    assert equal(resumed.tensors(), averaging.tensors())


def test_a_state_of_another_model_is_refused() -> None:
    averaging = Averaging(small_model(), Ema(0.5))
    averaging.update()
    other = Averaging(nn.Linear(2, 3), Ema(0.5))
    with pytest.raises(TaskError, match="another model"):
        other.load(averaging.state())
    assert other.num_steps == 0


def test_an_asynchronous_average_has_the_same_bits() -> None:
    results = []
    for asynchronous in (False, True):
        model = small_model()
        averaging = Averaging(model, Ema(0.9), asynchronous=asynchronous)
        for _ in training(model, 8, release=averaging.release):
            averaging.update()
        results.append(copy_of(averaging.tensors()))
    assert equal(*results)


def test_an_error_in_the_thread_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    averaging = Averaging(model, Ema(0.9), asynchronous=True)
    averaging.update()
    averaging.update()
    averaging.finish()
    monkeypatch.setattr("soupkit.train.overlap.torch._foreach_lerp_", None)
    monkeypatch.setattr(averaging, "_by_forward", [])
    averaging._average = averaging._average[: len(averaging._averaged)]
    averaging.update()
    with pytest.raises(TypeError):
        averaging.release()


def test_nothing_is_averaged_before_the_start() -> None:
    model = small_model()
    averaging = Averaging(model, Ema(0.5, start=3))
    for step in training(model, 4):
        averaging.update()
        assert averaging.is_ready == (step == 3)
        assert equal(averaging.tensors(), model.state_dict())  # live, then the first copy
    assert averaging.state()["num_steps"] == 4


def test_switch_ema_writes_the_average_back() -> None:
    """Li et al. 2024: with decay 0.5 and a switch after every second step, worked by hand."""
    weight = torch.zeros(1, dtype=torch.float64)
    averaging = Averaging({"w": weight}, Ema(0.5), switch_every=2)
    seen = []
    for _ in range(4):
        weight += 4
        averaging.update()
        seen.append((float(weight), float(averaging.tensors()["w"])))
    assert seen == [(4, 4), (6, 6), (10, 8), (11, 11)]


def test_buffers_that_move_with_the_model_are_still_found() -> None:
    """`Module.to` replaces buffers: whoever holds the old ones averages the past."""
    model = small_model()
    averaging = Averaging(model, Ema(0.5))
    model.double()
    for _ in training(model, 3):
        averaging.update()
    wanted = Averaging(other := small_model().double(), Ema(0.5))
    for _ in training(other, 3):
        wanted.update()
    assert equal(averaging.tensors(), wanted.tensors())
