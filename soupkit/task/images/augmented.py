"""Training images as training sees them, for what learns of them in another way than training does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soupkit.recipe.train import Finetune
from soupkit.task.images.batches import train_transform
from soupkit.task.images.data import Part
from soupkit.task.images.examples import ImageBatch
from soupkit.task.images.task import ImageTask
from soupkit.task.images.transforms import Transform, normalize
from soupkit.task.randomness import Stream, seeded


class Augmented:
    """Random crops and flips of a task's training images, drawn by seed, epoch and example.

    So they depend neither on how a batch is cut nor on ranks or workers. Called with the indices of each
    batch and the epoch, it reads the batches.
    """

    def __init__(self, task: ImageTask, how: Finetune, *, seed: int, workers: int) -> None:
        self.task, self.seed, self.workers = task, seed, workers
        self._transform = train_transform(task.settings, how, characters=task.splits.characters)

    def __call__(self, pieces: Sequence[np.ndarray], epoch: int) -> Iterator[ImageBatch]:
        drawn = _Drawn(self.task.splits.train, self._transform, self.seed, epoch)
        chunks: Any = [piece.tolist() for piece in pieces]
        if not chunks:
            return
        loaded = torch.utils.data.DataLoader(
            drawn, batch_sampler=chunks, num_workers=self.workers, generator=torch.Generator()
        )
        for pixels, targets in loaded:
            yield ImageBatch(normalize(pixels, self.task.settings), targets)


class _Drawn(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Augmented pixels and class by index; worker processes get a copy of it."""

    def __init__(self, part: Part, transform: Transform, seed: int, epoch: int) -> None:
        self.part, self.transform, self.seed, self.epoch = part, transform, seed, epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = self.part[index]
        with seeded(self.seed, Stream.AUGMENTATION, self.epoch, index):
            return self.transform(image), int(target)
