"""Training batches: shuffled, augmented, mixed, and the same for the same seed whoever decodes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import timm.data
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from soupkit.recipe.train import Finetune
from soupkit.task.images.transforms import ImageSettings, Transform, image_mode, normalize
from soupkit.train.randomness import Stream, seeded


class Labelled(Protocol):
    """A map-style data set of images and class numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


class Place(NamedTuple):
    """Which examples make up batch `number` of epoch `epoch`."""

    epoch: int
    number: int
    indices: tuple[int, ...]


def num_batches(num_examples: int, batch_size: int) -> int:
    """Updates per epoch."""
    return math.ceil(num_examples / batch_size)


def epoch_places(num_examples: int, batch_size: int, *, seed: int, epoch: int, even: bool) -> list[Place]:
    """Every example once, in a new order each epoch, in batches whose sizes differ by at most one.

    A short last batch would weigh its examples more and estimate batch-norm statistics from few. even: mixing
    takes pairs, so a batch of an odd size repeats its first example.
    """
    order = np.random.default_rng([seed, Stream.ORDER, epoch]).permutation(num_examples)
    split = [part.tolist() for part in np.array_split(order, num_batches(num_examples, batch_size))]
    if even:
        split = [part + part[:1] if len(part) % 2 else part for part in split]
    return [Place(epoch, number, tuple(part)) for number, part in enumerate(split)]


def train_transform(settings: ImageSettings, recipe: Finetune, *, characters: bool) -> Transform:
    """PIL image → uint8[C, H, W]: random resized crop, flip and RandAugment (Cubuk et al. 2020,
    arXiv:1909.13719).

    An image smaller than the input is enlarged first, for a crop of an 8 × 8 image comes in whole pixels.
    Characters are not mirrored unless the recipe says so.
    """
    hflip = recipe.hflip if recipe.hflip is not None else 0.0 if characters else 0.5
    # mmax9: at 10, posterising would leave no bit, which Pillow 12 refuses
    augment = f"rand-m{recipe.rand_augment_magnitude}-n{recipe.rand_augment}-mstd0.5-mmax9-inc1"
    transform = timm.data.create_transform(
        settings.input_size,
        is_training=True,
        scale=recipe.crop_scale,
        hflip=hflip,
        color_jitter=None,
        auto_augment=augment if recipe.rand_augment else None,
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        normalize=False,
    )
    mode, (height, width) = image_mode(settings), settings.input_size[1:]

    def apply(image: Image.Image) -> Tensor:
        pixels: Tensor = transform(_at_least(image.convert(mode), width, height))
        return pixels

    return apply


def loader(
    examples: Labelled, transform: Transform, recipe: Finetune, *, pin_memory: bool, first: int = 0
) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """All batches of all epochs, in order: their place, uint8[b, C, H, W] and int64[b]; decoded by
    recipe.workers.

    first: the batch to begin with, counted over all epochs; those before it are not decoded.
    """
    places = _Places(len(examples), recipe, first)
    batches: Any = _Augmented(examples, transform, recipe.seed)
    return iter(
        DataLoader(
            batches,
            batch_size=None,
            sampler=places,
            num_workers=recipe.workers,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(recipe.seed),
        )
    )


Finish = Callable[[Place, Tensor, Tensor], tuple[Tensor, Tensor]]


def finisher(settings: ImageSettings, recipe: Finetune, *, num_classes: int, device: torch.device) -> Finish:
    """What is done to a whole batch on `device`: normalise, erase, mix; targets become float32[b, classes].

    Random erasing: Zhong et al. 2020, arXiv:1708.04896. mixup: Zhang et al. 2018, arXiv:1710.09412. CutMix:
    Yun et al. 2019, arXiv:1905.04899; with both, each batch takes one of them by a fair coin. Targets of
    every example sum to one.
    """
    mix = timm.data.Mixup(
        recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes
    )
    mix.mixup_enabled = mixes(recipe)
    erase = timm.data.random_erasing.RandomErasing(recipe.random_erasing, device=device.type)

    def finish(place: Place, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images = normalize(pixels.to(device, non_blocking=True), settings)
        targets = targets.to(device, non_blocking=True)
        with seeded(recipe.seed, Stream.MIXING, place.epoch, place.number):
            images = erase(images) if recipe.random_erasing else images
            if not mix.mixup_enabled:
                return images, timm.data.mixup.mixup_target(targets, num_classes, 1.0, recipe.label_smoothing)
            mixed: tuple[Tensor, Tensor] = mix(images, targets)
            return mixed

    return finish


def mixes(recipe: Finetune) -> bool:
    """Whether examples are mixed in pairs."""
    return recipe.mixup > 0 or recipe.cutmix > 0


def _at_least(image: Image.Image, width: int, height: int) -> Image.Image:
    factor = max(width / image.width, height / image.height)
    if factor <= 1:
        return image
    size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


class _Places:
    """The sampler: the places of all epochs from the batch `first` on, made when they are needed."""

    def __init__(self, num_examples: int, recipe: Finetune, first: int) -> None:
        self.num_examples, self.recipe, self.first = num_examples, recipe, first

    def __iter__(self) -> Iterator[Place]:
        epoch, skipped = divmod(self.first, num_batches(self.num_examples, self.recipe.batch_size))
        for number in range(epoch, self.recipe.epochs):
            places = epoch_places(
                self.num_examples,
                self.recipe.batch_size,
                seed=self.recipe.seed,
                epoch=number,
                even=mixes(self.recipe),
            )
            yield from places[skipped if number == epoch else 0 :]

    def __len__(self) -> int:
        return self.recipe.epochs * num_batches(self.num_examples, self.recipe.batch_size) - self.first


class _Augmented:
    """The data set: a place → its batch."""

    def __init__(self, examples: Labelled, transform: Transform, seed: int) -> None:
        self.examples, self.transform, self.seed = examples, transform, seed

    def __getitem__(self, place: Place) -> tuple[Place, Tensor, Tensor]:
        with seeded(self.seed, Stream.AUGMENTATION, place.epoch, place.number):
            pairs = [self.examples[index] for index in place.indices]
            images = torch.stack([self.transform(image) for image, _ in pairs])
        return place, images, torch.tensor(_classes(pairs))


def _classes(pairs: Sequence[tuple[Image.Image, int]]) -> list[int]:
    return [int(target) for _, target in pairs]
