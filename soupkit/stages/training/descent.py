"""What jobs that train with `soupkit.curve.descent` share: batches, and statistics of what they write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch

from soupkit.recipe.train import Finetune
from soupkit.stages.training.start import Start
from soupkit.task.batch_norm import refresh
from soupkit.task.images.examples import ImageBatch, ImageExamples, shown_to
from soupkit.train.batches import Place, finisher, loader, num_batches, train_transform
from soupkit.train.loop import amp_dtype


def training_batches(
    start: Start, training: Finetune, *, device: torch.device, first: int = 0
) -> Iterator[tuple[Place, ImageBatch]]:
    """The batches of all epochs on `device`, from number `first` on, each with its place; targets are
    soft."""
    finish = finisher(start.settings, training, num_classes=start.splits.num_classes, device=device)
    transform = train_transform(start.settings, training, characters=start.splits.characters)
    pin = device.type == "cuda"
    for read in loader(start.splits.train, transform, training, pin_memory=pin, first=first):
        images, mixed = finish(*read)
        yield read[0], ImageBatch(images.contiguous(memory_format=torch.channels_last), mixed)


def updates_per_epoch(start: Start, training: Finetune) -> int:
    """Batches of one epoch."""
    return num_batches(len(start.splits.train), training.batch_size)


def precision(training: Finetune, device: torch.device) -> AbstractContextManager[None]:
    """The context that forward passes run in: mixed precision where the recipe asks for it."""
    dtype = amp_dtype(training, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def refresh_statistics(start: Start, training: Finetune, *, num_batches: int, device: torch.device) -> None:
    """Re-estimate the batch-norm statistics of the model's present weights on training data, unaugmented."""
    examples = ImageExamples(start.splits.train, start.settings, workers=training.workers)
    order = np.random.default_rng(training.split_seed).permutation(len(examples))
    indices = order[: num_batches * training.batch_size]
    refresh(
        start.model,
        examples.batches(batch_size=training.batch_size, indices=indices),
        shown_to(start.model, device),
    )
