"""Training on a device: the loop, mixed precision, averages beside it, populations."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from cuda.conftest import Gpu
from cuda.populations import population_in, recipe, task_on
from torch import Tensor
from train.population_small import no_dropout
from train.small import SmallModel, finetune_recipe, small_model

from soupkit.curve.descent import Descent
from soupkit.curve.state import load_state, save_state
from soupkit.events import silent
from soupkit.merge.running import Ema
from soupkit.recipe.train import Finetune
from soupkit.task.images.data import Splits, open_data
from soupkit.task.images.examples import ImageBatch
from soupkit.task.randomness import Stream, seeded
from soupkit.train.averaging import Averaging
from soupkit.train.loop import Fitted, Updater, amp_dtype, fit
from soupkit.train.population.population import Population
from soupkit.train.population.vectorised import OnStreams, Vectorised, choose_advance, one_by_one
from soupkit.world import World

CPU = torch.device("cpu")
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5}
"""A few updates in float32: other kernels sum in another order, 1e-7 of a sum, which Adam's division by small
second moments enlarges."""
HALF = 0.02
"""bfloat16 keeps 8 bits, so a logit of size 2 is off by up to 2⁻⁷, and a loss of 2.3 by as much."""


@pytest.fixture(scope="module")
def few() -> Splits:
    return open_data(finetune_recipe(num_train=48))


def trained(
    data: Splits, recipe: Finetune, device: torch.device, averages: Any = ()
) -> tuple[SmallModel, Fitted]:
    model = no_dropout(0)
    made = [make(model) for make in averages]
    return model, fit(task_on(device, model, data), recipe, report=silent, averages=made)


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor.cpu(), other[name].cpu(), **CLOSE)


@pytest.mark.parametrize(
    "values",
    [
        {"amp": "off"},
        {
            "amp": "off",
            "mixup": 0.4,
            "cutmix": 1.0,
            "random_erasing": 0.3,
            "clip_grad": 1.0,
            "optimizer": "sgd",
        },
    ],
    ids=["plain", "augmented"],
)
def test_training_learns_what_it_learns_on_the_cpu(gpu: Gpu, few: Splits, values: dict[str, Any]) -> None:
    training = finetune_recipe(batch_size=16, epochs=1, **values)
    (here, cpu), (there, found) = trained(few, training, CPU), trained(few, training, gpu.device)
    assert all(tensor.device == gpu.device for tensor in there.state_dict().values())
    assert there.conv.weight.is_contiguous()
    assert found.losses == pytest.approx(cpu.losses, rel=1e-4)
    assert_close(there.state_dict(), here.state_dict())


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_stays_near_float32(gpu: Gpu, few: Splits, amp: str) -> None:
    training = finetune_recipe(batch_size=16, epochs=1)
    _, cpu = trained(few, finetune_recipe(batch_size=16, epochs=1, amp="off"), CPU)
    model, found = trained(few, finetune_recipe(batch_size=16, epochs=1, amp=amp, clip_grad=1e3), gpu.device)
    assert found.losses == pytest.approx(cpu.losses, rel=HALF)
    assert model.conv.weight.dtype == torch.float32
    assert amp_dtype(training, gpu.device) == torch.bfloat16  # auto


def test_the_scaler_skips_what_overflows_and_goes_on(gpu: Gpu, few: Splits) -> None:
    model = no_dropout(0)
    training = finetune_recipe(amp="float16", clip_grad=1.0)
    update = Updater(task_on(gpu.device, model.train(), few), training, num_updates=9, updates_per_epoch=3)
    model.train()
    images = torch.randn(4, 3, 16, 16, device=gpu.device)
    targets = torch.eye(10, device=gpu.device)[:4]
    before = model.head.weight.detach().clone()
    update(ImageBatch(images * torch.inf, targets))
    assert (update.num_done, update.num_skipped, update.stepped) == (0, 1, False)
    assert torch.equal(model.head.weight, before)
    model.norm.reset_running_stats()
    update(ImageBatch(images, targets))
    assert (update.num_done, update.stepped) == (1, True)
    assert not torch.equal(model.head.weight, before)


def test_convolutions_see_images_and_weights_channels_last(gpu: Gpu, few: Splits) -> None:
    seen = []

    class Watched(SmallModel):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((images.stride()[1], self.conv.weight.stride()[1], images.device))
            return super().forward(images)

    task = task_on(gpu.device, Watched(), few)
    fit(task, finetune_recipe(batch_size=16, epochs=1), report=silent)
    assert seen == [(1, 1, gpu.device)] * 3


@pytest.mark.parametrize("where", [None, "cpu"], ids=["beside", "off-loaded"])
def test_averages_beside_training_are_those_of_a_loop_that_waits(
    gpu: Gpu, few: Splits, where: str | None
) -> None:
    """Side stream, or pinned memory and a thread: the same operations in the same order, so the same bits."""
    states = []
    for asynchronous in (False, True):
        made: list[Averaging] = []

        def make(model: SmallModel) -> Averaging:
            made.append(Averaging(model, Ema(0.9), device=where, asynchronous=asynchronous))  # noqa: B023
            return made[-1]  # noqa: B023

        trained(few, finetune_recipe(batch_size=16, epochs=1, amp="off"), gpu.device, [make])
        states.append({name: tensor.clone() for name, tensor in made[0].tensors().items()})
        kept = made[0].state()["average"]
        assert {tensor.device for tensor in kept.values()} == {CPU if where else gpu.device}
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=0, atol=0)
    if gpu.stand_in is not None:
        assert set(gpu.stand_in.streams.entered) == {1}


def test_an_average_outlives_the_memory_of_the_weights_that_it_read(gpu: Gpu) -> None:
    """A model that is laid out anew gives its weights back while the side stream may still read them."""
    for where in (None, "cpu"):
        model = torch.nn.Linear(512, 512).to(gpu.device)
        average = Averaging(model, Ema(0.5), device=where, asynchronous=True)
        average.update()
        expected = model.weight.detach().cpu().clone()
        average.update()
        with torch.no_grad():
            model.weight.data = model.weight.detach() + 1
            torch.full((512, 512), torch.nan, device=gpu.device)  # takes what was freed, if it may
        kept = average.tensors()["weight"].cpu()
        torch.testing.assert_close(kept, expected, rtol=1e-6, atol=1e-7)


def on_device(wanted: Any, device: torch.device) -> Population:
    return population_in(World(str(device), threads=1, rank=0, size=1), wanted)


@pytest.mark.parametrize("way", ["streams", "vectorised"])
def test_members_learn_together_what_they_learn_one_by_one(gpu: Gpu, way: str) -> None:
    alone, together = on_device(recipe(), CPU), on_device(recipe(), gpu.device)
    chosen = choose_advance(together.members, together.flat, wish="auto", device=gpu.device)
    assert isinstance(chosen, Vectorised)
    alone.train(silent, advance=one_by_one)
    together.train(silent, advance=chosen if way == "vectorised" else OnStreams(2, gpu.device))
    np.testing.assert_allclose(together.history.losses, alone.history.losses, rtol=1e-4)
    for one, other in zip(alone.members, together.members, strict=True):
        assert_close(one.model.state_dict(), other.model.state_dict())
    if gpu.stand_in is not None and way == "streams":
        assert gpu.stand_in.streams.entered[:4] == [1, 2, 1, 2]


def test_mixed_members_on_streams_scale_their_losses_apart(gpu: Gpu) -> None:
    together = on_device(recipe(num_train=16, amp="float16"), gpu.device)
    together.train(silent, advance=OnStreams(2, gpu.device))
    assert [member.updater.num_done for member in together.members] == [1, 1]
    assert np.isfinite(together.history.losses).all()


def test_randomness_depends_on_the_seed_and_the_callers_generator_goes_on(gpu: Gpu) -> None:
    def draw() -> Tensor:
        return torch.nn.functional.dropout(torch.ones(64, device=gpu.device))

    with seeded(1, Stream.FORWARD, device=gpu.device):
        first = draw()
    before = torch.cuda.get_rng_state(gpu.device)
    with seeded(1, Stream.FORWARD, device=gpu.device):
        assert torch.equal(draw(), first)
    with seeded(2, Stream.FORWARD, device=gpu.device):
        assert not torch.equal(draw(), first)
    assert torch.equal(torch.cuda.get_rng_state(gpu.device), before)


def test_the_state_of_a_fit_holds_the_generator_of_its_device(gpu: Gpu, tmp_path: Any) -> None:
    model = small_model().to(gpu.device)
    bends: Any = torch.nn.Linear(2, 2).to(gpu.device)
    optimizer = torch.optim.SGD(bends.parameters(), lr=0.1, momentum=0.9)
    bends(torch.ones(1, 2, device=gpu.device)).sum().backward()
    optimizer.step()
    descent = Descent(lambda *_: torch.zeros(()), optimizer, lambda _: 0.1, 1, 1)
    save_state(tmp_path / "state", descent, bends, model, about={})
    at = torch.cuda.get_rng_state(gpu.device)
    wanted = deepcopy(optimizer.state_dict()["state"][0]["momentum_buffer"])
    torch.cuda.manual_seed(99)
    assert load_state(tmp_path / "state", descent, bends, model, about={})
    assert torch.equal(torch.cuda.get_rng_state(gpu.device), at)
    found = optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert found.device == gpu.device
    assert torch.equal(found, wanted)
