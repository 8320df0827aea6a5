"""The loop learns, repeats itself to the bit, says when it diverges, and keeps its schedule."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from train.small import SETTINGS, SmallModel, finetune_recipe, small_model, task_of

from soupkit.errors import RecipeError, TaskError
from soupkit.events import Advanced, Event, Finished, Started, silent
from soupkit.recipe.train import Finetune
from soupkit.task.images.batches import loader, train_transform
from soupkit.task.images.data import Splits
from soupkit.task.images.examples import ImageBatch
from soupkit.task.images.transforms import eval_transform, normalize
from soupkit.train.loop import fit
from soupkit.train.optimize import build_optimizer, build_schedule, warmup_updates

CPU = torch.device("cpu")


def trained(digits: Splits, recipe: Finetune, seed: int = 0) -> tuple[SmallModel, list[float]]:
    model = small_model(seed)
    return model, fit(task_of(model, digits), recipe, report=silent).losses


def accuracy(model: torch.nn.Module, digits: Splits) -> float:
    transform = eval_transform(SETTINGS)
    images = torch.stack([transform(digits.train[i][0]) for i in range(len(digits.train))])
    targets = torch.tensor([digits.train[i][1] for i in range(len(digits.train))])
    with torch.no_grad():
        return (model(normalize(images, SETTINGS)).argmax(1) == targets).float().mean().item()


def test_training_learns(digits: Splits) -> None:
    model, losses = trained(digits, finetune_recipe(epochs=8, lr=1e-2))
    assert len(losses) == 8
    assert losses[-1] < 0.4 * losses[0]
    assert losses[0] == pytest.approx(math.log(10), rel=0.3)
    assert accuracy(model, digits) > 0.8 > 0.3 > accuracy(small_model(), digits)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "random_erasing": 0.3, "rand_augment": 2},
        {"optimizer": "sgd", "lr": 0.05, "clip_grad": 1.0, "schedule": "constant"},
        {"amp": "bfloat16"},
    ],
    ids=["plain", "augmented", "sgd", "bfloat16"],
)
def test_same_recipe_same_bits(digits: Splits, values: dict[str, object]) -> None:
    recipe = finetune_recipe(**values)
    model, losses = trained(digits, recipe)
    random.random(), np.random.rand(), torch.rand(1)  # another caller, who uses the global generators
    again, same_losses = trained(digits, recipe)
    assert losses == same_losses
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    other, _ = trained(digits, replace(recipe, seed=1))
    assert not torch.equal(model.head.weight, other.head.weight)


def test_the_callers_generators_go_on_undisturbed(digits: Splits) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def seed() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    seed()
    expected = draw()
    seed()
    trained(digits, finetune_recipe(mixup=0.4, rand_augment=1))
    assert draw() == expected


def test_one_update_equals_plain_torch(digits: Splits) -> None:
    """SGD without warmup on one batch of the whole set: w − lr·(gradient + decay·w), computed by hand."""
    num = len(digits.train)
    recipe = finetune_recipe(
        epochs=1, batch_size=num, optimizer="momentum", momentum=0.0, lr=0.1, weight_decay=0.01,
        warmup_epochs=0.0,
        crop_scale=(1.0, 1.0), label_smoothing=0.1,
    )  # fmt: skip
    model, by_hand = small_model(), small_model()
    model.drop.p = by_hand.drop.p = 0.0
    transform = train_transform(SETTINGS, recipe, characters=True)
    _, pixels, targets = next(loader(digits.train, transform, recipe, pin_memory=False))
    assert len(pixels) == num
    logits = by_hand.train()((pixels.float() / 255 - 0.5) / 0.5)
    loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    loss.backward()
    losses = fit(task_of(model, digits), recipe, report=silent).losses
    assert losses == [pytest.approx(loss.item(), rel=1e-6)]
    for name, parameter in by_hand.named_parameters():
        decay = 0.01 if name in ("head.weight", "conv.weight") else 0.0
        expected = parameter - 0.1 * (parameter.grad + decay * parameter)
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=0, atol=1e-6)
        assert not torch.equal(model.get_parameter(name), parameter)


def test_more_batch_than_examples_is_one_batch(digits: Splits) -> None:
    _, losses = trained(digits, finetune_recipe(batch_size=100_000, mixup=0.2))
    assert len(losses) == 2


def test_divergence_names_the_epoch(digits: Splits) -> None:
    with pytest.raises(TaskError, match=r"training loss became (nan|inf) in epoch \d of 3") as caught:
        trained(digits, finetune_recipe(epochs=3, lr=1e30, optimizer="sgd", warmup_epochs=0.0))
    assert "learning rate" in str(caught.value.hint)


def test_a_last_update_that_spoils_the_weights_is_noticed(digits: Splits) -> None:
    values = {"lr": 3e38, "weight_decay": 1e3, "warmup_epochs": 0.0}
    recipe = finetune_recipe(epochs=1, batch_size=200, optimizer="sgd", **values)
    with pytest.raises(TaskError, match="not finite after the last epoch"):
        trained(digits, recipe)


def test_progress_adds_up(digits: Splits) -> None:
    events: list[Event] = []
    fit(task_of(small_model(), digits), finetune_recipe(epochs=3), report=events.append)
    assert events[0] == Started("train", 21, "update")
    assert events[-1] == Finished("train")
    assert sum(event.by for event in events if isinstance(event, Advanced)) == 21
    advanced = [event for event in events if isinstance(event, Advanced)]
    assert "epoch 3/3, loss " in advanced[-1].note


def test_the_loss_of_shares_of_classes_against_numpy(digits: Splits) -> None:
    logits, targets = (
        np.random.default_rng(0).normal(size=(5, 4)),
        np.random.default_rng(1).dirichlet(np.ones(4), 5),
    )
    expected = -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum()
    task = task_of(torch.nn.Identity(), digits)
    found = task.loss(ImageBatch(torch.tensor(logits), torch.tensor(targets).float()))
    assert found.item() == pytest.approx(expected)


def rates(recipe: Finetune, *, per_epoch: int) -> list[float]:
    """The learning rate in force at every update."""
    model = small_model()
    optimizer = build_optimizer(model, recipe)
    num_updates = recipe.epochs * per_epoch
    schedule = build_schedule(optimizer, recipe, num_updates=num_updates, updates_per_epoch=per_epoch)
    found = []
    for done in range(1, num_updates + 1):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step_update(done)
    return found


def test_steps_of_warmup_stand_for_epochs() -> None:
    recipe = finetune_recipe(warmup_epochs=3.0, warmup_steps=7)
    assert warmup_updates(recipe, num_updates=100, updates_per_epoch=10) == 7
    assert warmup_updates(recipe, num_updates=10, updates_per_epoch=10) == 5
    assert warmup_updates(finetune_recipe(warmup_steps=0), num_updates=10, updates_per_epoch=10) == 0


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.4, 1.0, 2.0])
def test_cosine_by_hand(warmup_epochs: float) -> None:
    recipe = finetune_recipe(epochs=4, lr=0.3, min_lr=0.01, warmup_epochs=warmup_epochs)
    num, warm = 20, round(warmup_epochs * 5)
    by_hand = [0.3 * (u + 1) / (warm + 1) for u in range(warm)]
    by_hand += [
        0.01 + 0.29 * (1 + math.cos(math.pi * (u - warm) / (num - warm))) / 2 for u in range(warm, num)
    ]
    assert rates(recipe, per_epoch=5) == pytest.approx(by_hand)


def test_constant_by_hand() -> None:
    recipe = finetune_recipe(epochs=2, lr=0.3, schedule="constant", warmup_epochs=0.5)
    assert rates(recipe, per_epoch=8) == pytest.approx([0.3 * (u + 1) / 5 for u in range(4)] + [0.3] * 12)


def test_warmup_takes_at_most_half() -> None:
    assert warmup_updates(finetune_recipe(epochs=1), num_updates=9, updates_per_epoch=9) == 4
    assert rates(finetune_recipe(epochs=1, batch_size=32), per_epoch=1) == [3e-3]


def test_layer_decay_scales_the_rate_of_lower_layers() -> None:
    model = timm.create_model("test_vit", num_classes=10, img_size=32)
    recipe = finetune_recipe(layer_decay=0.5, lr=0.1, epochs=10, warmup_epochs=0.0)
    optimizer = build_optimizer(model, recipe)
    schedule = build_schedule(optimizer, recipe, num_updates=10, updates_per_epoch=1)
    schedule.step_update(5)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    depth = len(model.blocks)
    assert rate[id(model.head.weight)] == pytest.approx(0.05)
    for number, block in enumerate(model.blocks):
        assert rate[id(block.mlp.fc1.weight)] == pytest.approx(0.05 * 0.5 ** (depth - number))


def test_biases_and_norms_are_not_decayed() -> None:
    model = small_model()
    optimizer = build_optimizer(model, finetune_recipe(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.head.weight)] == 0.3
    assert decay[id(model.head.bias)] == decay[id(model.norm.weight)] == 0.0


def test_unknown_optimizer_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="adamww") as caught:
        build_optimizer(small_model(), finetune_recipe(optimizer="adamww"))
    assert "adamw" in str(caught.value.hint)


def test_layer_decay_without_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match="layer_decay has no effect"):
        build_optimizer(small_model(), finetune_recipe(layer_decay=0.5))


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf}, {"lr": 1e-4, "min_lr": 1e-3}, {"epochs": -1},
        {"mixup": -1.0},
        {"label_smoothing": 1.0}, {"random_erasing": 1.5}, {"rand_augment_magnitude": 10},
        {"layer_decay": 0.0},
        {"crop_scale": (0.7,)}, {"crop_scale": (0.9, 0.7)}, {"momentum": 1.0}, {"hflip": 2.0}, {"seed": -1},
        {"batch_size": 0}, {"model": None},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_when_the_recipe_is_made(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        finetune_recipe(**values)
