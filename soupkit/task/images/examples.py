"""A split as a model sees it: batches of normalised images, decoded once where memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from soupkit.errors import TaskError
from soupkit.task.images.data import Part
from soupkit.task.images.transforms import ImageSettings, Transform, eval_transform, normalize
from soupkit.task.task import Batch

DEFAULT_LIMIT = 1 << 30


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images float32[n, C, H, W], and classes int64[n] or shares of them float32[n, classes]."""

    images: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Images and targets."""
        return self.images, self.targets

    def of(self, *tensors: torch.Tensor) -> ImageBatch:
        """Other images and targets."""
        return ImageBatch(*tensors)


def shown_to(model: torch.nn.Module, device: torch.device) -> Callable[[Batch], torch.Tensor]:
    """Passes batches of images through a model: what a task does with its own."""

    def forward(batch: Batch) -> torch.Tensor:
        assert isinstance(batch, ImageBatch)
        logits: torch.Tensor = model(batch.images.to(device)).float()
        return logits

    return forward


class ImageExamples:
    """The examples of a split under the deterministic transform of evaluation.

    Pixels are kept as bytes after resizing, when all of them fit into `max_bytes`; otherwise they are decoded
    in each pass, by `workers` processes (0: in this one).
    """

    def __init__(
        self, part: Part, settings: ImageSettings, *, workers: int = 0, max_bytes: int = DEFAULT_LIMIT
    ) -> None:
        self.part = part
        self.settings = settings
        self.workers = workers
        self._transform = eval_transform(settings)
        self._known = np.zeros(len(part), bool)
        shape = (len(part), *settings.input_size)
        self._pixels = torch.empty(shape, dtype=torch.uint8) if np.prod(shape) <= max_bytes else None

    def __len__(self) -> int:
        return len(self.part)

    @property
    def num_bytes(self) -> int:
        """What the kept pixels take once all are decoded."""
        return 0 if self._pixels is None else self._pixels.numel()

    @cached_property
    def targets(self) -> np.ndarray:
        """The classes, int64[N]; decodes every image where the data set tells no other way."""
        known = self.part.targets
        if known is None:
            known = np.array([self.part[i][1] for i in range(len(self))], np.int64)
        if len(known) and known.min() < 0:
            raise TaskError(f"example {int(known.argmin())} has no label")
        return known

    def batches(self, *, batch_size: int, indices: np.ndarray | None = None) -> Iterator[ImageBatch]:
        """Batches in the order of `indices` (all, in order, when None)."""
        wanted = np.arange(len(self)) if indices is None else indices
        return self.chunks([wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size)])

    def chunks(self, chunks: Sequence[np.ndarray]) -> Iterator[ImageBatch]:
        """The same for batches of any sizes: one per array of indices. Work stops when the caller stops
        asking."""
        for indices, pixels in zip(chunks, self._decoded(chunks), strict=True):
            yield ImageBatch(normalize(pixels, self.settings), torch.from_numpy(self.targets[indices]))

    def _decoded(self, chunks: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        """Pixels uint8[b, C, H, W] of each chunk, from memory or decoded and then kept."""
        kept = [self._pixels is not None and bool(self._known[chunk].all()) for chunk in chunks]
        decoded = iter(
            self._decode([chunk.tolist() for chunk, known in zip(chunks, kept, strict=True) if not known])
        )
        for chunk, known in zip(chunks, kept, strict=True):
            if known and self._pixels is not None:
                yield self._pixels[torch.from_numpy(chunk)]
                continue
            pixels = next(decoded)
            if self._pixels is not None:
                self._pixels[torch.from_numpy(chunk)] = pixels
                self._known[chunk] = True
            yield pixels

    def _decode(self, chunks: list[list[int]]) -> Iterable[torch.Tensor]:
        images = _Decoding(self.part, self._transform)
        if not self.workers or not chunks:
            return (torch.stack([images[index] for index in chunk]) for chunk in chunks)
        return torch.utils.data.DataLoader(
            images,
            batch_sampler=chunks,
            num_workers=self.workers,
            collate_fn=torch.stack,
            generator=torch.Generator(),  # otherwise scoring would draw from the generator of a training loop
        )


class _Decoding(torch.utils.data.Dataset[torch.Tensor]):
    """Pixels by index; worker processes get a copy of it."""

    def __init__(self, part: Part, transform: Transform) -> None:
        self.part, self.transform = part, transform

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.part[index][0])
