"""Averages in loops of others: a loop of one's own, accelerate and timm; nothing is lost by an
interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.small import SmallModel, small_model

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import TaskError
from soupkit.integrations import Averages
from soupkit.merge.running import Bema, Ema, Planned, Swa, coefficients
from soupkit.merge.trajectory import decayed, power
from soupkit.train.ema import EMAOptimizer

DECAY = Planned((3, 4, 6), tuple(decayed(power(0.5), np.array([3.0, 4, 6])).tolist()))
RULES = {"ema": Ema(0.8), "swa": Swa(start=1, every=2), "bema": Bema(), "decayed": DECAY}


def batch(number: int) -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(number))


def train(model: SmallModel, optimizer: Any, averages: Averages | None, numbers: range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(number)
            model(batch(number)).square().mean().backward()
        optimizer.step()
        if averages is not None:
            averages.update()


def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    model = small_model()
    optimizer, averages = adam(model), Averages(model, RULES)
    train(model, optimizer, averages, range(3))
    averages.save(tmp_path)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "last.pt")
    train(model, optimizer, averages, range(3, 7))
    again = small_model(seed=5)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    again.load_state_dict(saved["model"])
    inner, resumed = adam(again), Averages(again, RULES)
    inner.load_state_dict(saved["optimizer"])
    resumed.restore(tmp_path)
    train(again, inner, resumed, range(3, 7))
    assert resumed.ready == list(RULES)
    for name in RULES:
        for key, tensor in averages.averaged(name).items():
            assert torch.equal(resumed.averaged(name)[key], tensor), (name, key)


def test_averages_are_their_rules_and_are_written(tmp_path: Path) -> None:
    model = small_model()
    averages, seen = Averages(model, RULES), []
    optimizer = adam(model)
    for number in range(7):
        train(model, optimizer, averages, range(number, number + 1))
        seen.append(model.conv.weight.detach().double())
    for name in ("ema", "swa", "decayed"):
        mean = sum(c * weight for c, weight in zip(coefficients(RULES[name], 7), seen))
        averages.write(tmp_path / name, name)
        written = Checkpoint(tmp_path / name)
        np.testing.assert_allclose(written["conv.weight"], mean.numpy(), rtol=1e-5, atol=1e-7)
        assert written.metadata["soupkit.weights"] == name
        with averages.swapped(name):
            assert torch.equal(model.conv.weight, torch.from_numpy(written["conv.weight"]))
    assert torch.equal(model.conv.weight.double(), seen[-1])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    averages = Averages(small_model(), {"ema": Ema(0.8)})
    with pytest.raises(TaskError, match="cannot go on"):
        averages.restore(tmp_path)
    with pytest.raises(TaskError, match="expected ema"):
        averages.load_state_dict({"swa": {}})
    with pytest.raises(TaskError, match="no average 'swa'"):
        averages.swapped("swa")
    for rules in ({}, {"a/b": Ema(0.8)}):
        with pytest.raises(TaskError, match="names of folders"):
            Averages(small_model(), rules)


def test_timm_takes_the_average_for_its_own(tmp_path: Path) -> None:
    """As timm's train.py calls it: update, validate, CheckpointSaver, resume_checkpoint."""
    from timm.models import resume_checkpoint
    from timm.utils import CheckpointSaver

    from soupkit.integrations.timm import ModelAverage

    def made(seed: int) -> tuple[SmallModel, EMAOptimizer, ModelAverage]:
        model = small_model(seed=seed)
        optimizer = EMAOptimizer(adam(model), model, half_life=3, gamma=None)
        return model, optimizer, ModelAverage(optimizer, model)

    model, optimizer, model_ema = made(0)
    train(model, optimizer, None, range(3))
    model_ema.update(model, step=3)
    saver = CheckpointSaver(
        model=model, optimizer=optimizer, model_ema=model_ema, checkpoint_dir=str(tmp_path), decreasing=False
    )
    saver.save_checkpoint(0, metric=1.0)
    stored = torch.load(tmp_path / "last.pth.tar", weights_only=False)["state_dict_ema"]
    assert all(torch.equal(stored[name], tensor) for name, tensor in optimizer.ema_state_dict().items())
    again, resumed, average = made(4)
    resume_checkpoint(again, str(tmp_path / "last.pth.tar"), optimizer=resumed, log_info=False)
    for net, each in ((model, optimizer), (again, resumed)):
        train(net, each, None, range(3, 5))
    with torch.no_grad(), optimizer.swap_ema_weights():
        wanted = model.eval()(batch(9))
    assert torch.equal(average(batch(9)), wanted)
    assert torch.equal(model_ema(batch(9)), wanted)


def test_accelerate_saves_and_loads_it(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    from soupkit.integrations.accelerate import averages_of

    def made(seed: int) -> tuple[Any, SmallModel, Any, Averages]:
        accelerator = accelerate.Accelerator(cpu=True)
        model = small_model(seed=seed)
        model, optimizer = accelerator.prepare(model, adam(model))
        return accelerator, model, optimizer, averages_of(accelerator, model, optimizer, RULES)

    accelerator, model, optimizer, averages = made(0)
    train(model, optimizer, None, range(3))
    accelerator.save_state(str(tmp_path / "state"))
    train(model, optimizer, None, range(3, 7))
    other, again, inner, resumed = made(4)
    other.load_state(str(tmp_path / "state"))
    train(again, inner, None, range(3, 7))
    for name in RULES:
        for key, tensor in averages.averaged(name).items():
            assert torch.equal(resumed.averaged(name)[key], tensor), (name, key)


def test_accelerate_takes_the_optimizer_that_averages() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, plain = small_model(), small_model()
    wrapping = EMAOptimizer(adam(model), model, decay=0.9)
    reference = EMAOptimizer(adam(plain), plain, decay=0.9)
    _, optimizer, schedule = accelerate.Accelerator(cpu=True).prepare(
        model, wrapping, torch.optim.lr_scheduler.StepLR(wrapping, 2)
    )
    other = torch.optim.lr_scheduler.StepLR(reference, 2)
    for number in range(4):
        train(model, optimizer, None, range(number, number + 1))
        schedule.step()
        train(plain, reference, None, range(number, number + 1))
        other.step()
    for key, tensor in reference.ema_state_dict().items():
        assert torch.equal(wrapping.ema_state_dict()[key], tensor), key
