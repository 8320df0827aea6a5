"""Training batches of images: augmented, mixed, and the same for the same seed whoever decodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from soupkit.recipe.train import Finetune
from soupkit.task.epochs import Epochs, Place
from soupkit.task.images.data import Part
from soupkit.task.images.examples import ImageBatch
from soupkit.task.images.transforms import ImageSettings, Transform, image_mode, normalizer
from soupkit.task.randomness import Stream, seeded


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
    examples: Part, transform: Transform, recipe: Finetune, *, pin_memory: bool, first: int = 0
) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """All batches of all epochs, in order: their place, uint8[b, C, H, W] and int64[b]; decoded by
    recipe.workers.

    first: the batch to begin with, counted over all epochs; those before it are not decoded.
    """
    places = Epochs(len(examples), recipe, first=first, even=mixes(recipe))
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


Finish = Callable[[Place, Tensor, Tensor], ImageBatch]


def finisher(settings: ImageSettings, recipe: Finetune, *, num_classes: int, device: torch.device) -> Finish:
    """What is done to a whole batch on `device`: normalise, erase, mix; targets become float32[b, classes].

    Images lie channels last: convolutions run up to 1.6 times as fast, on CPUs too.

    Random erasing: Zhong et al. 2020, arXiv:1708.04896. mixup: Zhang et al. 2018, arXiv:1710.09412. CutMix:
    Yun et al. 2019, arXiv:1905.04899; with both, each batch takes one of them by a fair coin. Targets of
    every example sum to one.
    """
    mix = timm.data.Mixup(
        recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes
    )
    mix.mixup_enabled = mixes(recipe)
    normalized = normalizer(settings, device)
    erase = timm.data.random_erasing.RandomErasing(recipe.random_erasing, device=device.type)

    def finish(place: Place, pixels: Tensor, classes: Tensor) -> ImageBatch:
        images = normalized(pixels.to(device, non_blocking=True))
        classes = classes.to(device, non_blocking=True)
        with seeded(recipe.seed, Stream.MIXING, place.epoch, place.number):
            images = erase(images) if recipe.random_erasing else images
            if mix.mixup_enabled:
                images, shares = mix(images, classes)
            else:
                shares = timm.data.mixup.mixup_target(classes, num_classes, 1.0, recipe.label_smoothing)
        return ImageBatch(images.contiguous(memory_format=torch.channels_last), shares)

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


class _Augmented:
    """The data set: a place → its batch."""

    def __init__(self, examples: Part, transform: Transform, seed: int) -> None:
        self.examples, self.transform, self.seed = examples, transform, seed

    def __getitem__(self, place: Place) -> tuple[Place, Tensor, Tensor]:
        with seeded(self.seed, Stream.AUGMENTATION, place.epoch, place.number):
            pairs = [self.examples[index] for index in place.indices]
            images = torch.stack([self.transform(image) for image, _ in pairs])
        return place, images, torch.tensor([int(target) for _, target in pairs])
