"""Batches: who is in them, that they are the same for the same seed, and what mixing does to targets."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from train.small import SETTINGS, finetune_recipe

from soupkit.task.epochs import epoch_places, num_batches
from soupkit.task.images.batches import finisher, loader, train_transform
from soupkit.task.images.data import Splits
from soupkit.task.randomness import Stream, seeded


@pytest.mark.parametrize("num_examples", [1, 2, 3, 7, 31, 32, 33, 65, 200])
@pytest.mark.parametrize("even", [False, True])
def test_an_epoch_holds_every_example(num_examples: int, even: bool) -> None:
    places = epoch_places(num_examples, 32, seed=1, epoch=0, even=even)
    sizes = [len(place.indices) for place in places]
    everyone = [index for place in places for index in place.indices]
    assert len(places) == num_batches(num_examples, 32) == -(-num_examples // 32)
    assert set(everyone) == set(range(num_examples))
    if even:
        assert all(size % 2 == 0 for size in sizes)
        assert len(everyone) - num_examples <= len(places)
    else:
        assert len(everyone) == num_examples
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 32


def test_order_follows_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [i for place in epoch_places(50, 8, seed=seed, epoch=epoch, even=False) for i in place.indices]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def batches(digits: Splits, **values: object) -> list[torch.Tensor]:
    recipe = finetune_recipe(rand_augment=2, hflip=0.5, epochs=1, **values)
    transform = train_transform(SETTINGS, recipe, characters=True)
    return [pixels for _, pixels, _ in loader(digits.train, transform, recipe, pin_memory=False)]


def test_augmentation_does_not_depend_on_who_decodes(digits: Splits) -> None:
    alone = batches(digits)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    for one, other in zip(alone, batches(digits, workers=2), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(alone[0], batches(digits, seed=1)[0])


def test_small_images_are_enlarged_before_they_are_cropped() -> None:
    """Crops of 8 × 8 in whole pixels: 0.9 of the area gives two or three images; enlarged first, many."""
    image = Image.fromarray((np.arange(64).reshape(8, 8) * 4).astype(np.uint8))
    transform = train_transform(SETTINGS, finetune_recipe(crop_scale=(0.7, 0.9)), characters=True)
    with seeded(0, Stream.AUGMENTATION):
        seen = {transform(image).numpy().tobytes() for _ in range(64)}
    assert len(seen) > 40


def test_characters_are_not_mirrored_and_photographs_are() -> None:
    image = Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1)))
    recipe = finetune_recipe(crop_scale=(1.0, 1.0))

    def mirrored(characters: bool) -> int:
        transform = train_transform(SETTINGS, recipe, characters=characters)
        with seeded(0, Stream.AUGMENTATION):
            pixels = torch.stack([transform(image) for _ in range(64)]).float()
        return int((pixels[..., 0].mean((1, 2)) > pixels[..., -1].mean((1, 2))).sum())

    assert mirrored(characters=True) == 0
    assert 15 < mirrored(characters=False) < 49


def test_every_magnitude_of_rand_augment_runs() -> None:
    image = Image.fromarray(np.full((16, 16), 100, np.uint8))
    for magnitude in range(10):
        recipe = finetune_recipe(rand_augment=9, rand_augment_magnitude=magnitude)
        transform = train_transform(SETTINGS, recipe, characters=True)
        with seeded(0, Stream.AUGMENTATION):
            for _ in range(20):
                assert transform(image).shape == (3, 16, 16)


@pytest.mark.parametrize("mixup", [0.0, 0.8])
@pytest.mark.parametrize("cutmix", [0.0, 1.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("num_examples", [1, 33])
def test_targets_sum_to_one(mixup: float, cutmix: float, label_smoothing: float, num_examples: int) -> None:
    recipe = finetune_recipe(mixup=mixup, cutmix=cutmix, label_smoothing=label_smoothing, random_erasing=0.5)
    finish = finisher(SETTINGS, recipe, num_classes=10, device=torch.device("cpu"))
    for place in epoch_places(num_examples, 64, seed=0, epoch=0, even=mixup > 0 or cutmix > 0):
        pixels = torch.randint(0, 256, (len(place.indices), *SETTINGS.input_size), dtype=torch.uint8)
        images, targets = finish(place, pixels, torch.arange(len(pixels)) % 10).tensors
        assert images.shape == pixels.shape
        assert images.isfinite().all()
        assert targets.shape == (len(pixels), 10)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(pixels)))
        assert targets.min() >= label_smoothing / 10 - 1e-6


def test_mixup_is_a_convex_combination_of_images_and_targets_alike() -> None:
    """Reverse-engineer λ from the targets, and rebuild the images from the unmixed ones with it."""
    place = epoch_places(4, 4, seed=0, epoch=0, even=True)[0]
    pixels, classes = torch.randint(0, 256, (4, *SETTINGS.input_size), dtype=torch.uint8), torch.arange(4)
    cpu = torch.device("cpu")
    (plain, _), (mixed, targets) = (
        finisher(SETTINGS, recipe, num_classes=4, device=cpu)(place, pixels, classes).tensors
        for recipe in (finetune_recipe(), finetune_recipe(mixup=1.0))
    )
    share = targets[0, 0]
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * plain + (1 - share) * plain.flip(0))
    torch.testing.assert_close(targets, share * torch.eye(4) + (1 - share) * torch.eye(4).flip(0))
