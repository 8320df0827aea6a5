"""Images with their classes, by what holds them: arrays, files, rendered glyphs, data sets of timm's
factory."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from PIL import Image, UnidentifiedImageError

from soupkit.errors import TaskError
from soupkit.identity import digest
from soupkit.task.images.glyphs import glyph_classes, render_glyphs

Example = tuple[Image.Image, int]
NUM_COMPARED = 64
"""Files that are read to tell whether a folder is a copy of another."""


class LabelledImages(Protocol):
    """A map-style data set of (PIL image, class)."""

    @property
    def targets(self) -> np.ndarray | None:
        """int64[N], None where only decoding tells."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...


class ArrayImages:
    """Grey images uint8[N, H, W] in memory."""

    def __init__(self, images: np.ndarray, targets: np.ndarray) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Image.fromarray(self.images[index]), int(self.targets[index])


class Glyphs:
    """Rendered digits, drawn when the first is asked for and then kept by the process."""

    def __init__(self, num: int, stream: int) -> None:
        self.num, self.stream = num, stream
        self.targets = glyph_classes(num, stream=stream)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Example:
        return Image.fromarray(_rendered(self.num, self.stream)[index]), int(self.targets[index])


class FileImages:
    """Image files. A file that cannot be decoded raises TaskError: a skipped one would change what a score
    means."""

    def __init__(self, root: Path, samples: Sequence[tuple[str, int]]) -> None:
        self.root = root
        self.paths = [path for path, _ in samples]
        self.targets = np.array([target for _, target in samples], np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
        except (OSError, UnidentifiedImageError) as error:
            raise TaskError(
                f"{path} cannot be decoded: {error}", hint="replace or delete the file"
            ) from error
        return image, int(self.targets[index])

    @property
    def identities(self) -> np.ndarray:
        """Device and number of every file, uint64[N]: the same for every path that leads to it. Read once."""
        identities: np.ndarray = self._stats[:, 0]
        return identities

    def copies(self, indices: np.ndarray, other: FileImages, others: np.ndarray) -> np.ndarray:
        """Which of some files have a copy among some of another pool's, bool[N].

        Class, name and size are equal, and the bytes of those that are compared, NUM_COMPARED or a few more.
        """
        theirs: dict[tuple[str, ...], list[str]] = {}
        for index in others:
            theirs.setdefault(other._marks(index), []).append(other.paths[index])
        alike = np.array([self._marks(index) in theirs for index in indices], bool)
        compared = indices[alike][:: max(1, int(alike.sum()) // NUM_COMPARED)]
        same = all(
            any(filecmp.cmp(self.paths[index], path, shallow=False) for path in theirs[self._marks(index)])
            for index in compared
        )
        return alike & same

    @cached_property
    def _stats(self) -> np.ndarray:
        stats = map(os.stat, self.paths)
        return np.array(
            [((stat.st_dev << 44 ^ stat.st_ino) % (1 << 64), stat.st_size) for stat in stats], np.uint64
        )

    def _marks(self, index: int) -> tuple[str, ...]:
        """Class, name and size."""
        return (*self.paths[index].rsplit(os.sep, 2)[-2:], str(self._stats[index, 1]))

    def names(self) -> Iterator[str]:
        """Paths below the root, which identify the examples."""
        return (Path(path).relative_to(self.root).as_posix() for path in self.paths)


class FactoryImages:
    """A data set of timm's factory; one that only streams is read into memory."""

    def __init__(self, dataset: Any, *, limit: int | None = None) -> None:
        streams = isinstance(dataset, torch.utils.data.IterableDataset)
        self.dataset = list(islice(dataset, limit)) if streams else dataset
        self.targets = self._known_targets(streams)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        image, target = self.dataset[index][:2]
        return image, int(target)

    def _known_targets(self, streams: bool) -> np.ndarray | None:
        if streams:
            return np.array([target for _, target, *_ in self.dataset], np.int64)
        reader = getattr(self.dataset, "reader", None)
        if reader is not None and hasattr(reader, "samples"):
            return np.array([target for _, target in reader.samples], np.int64)
        targets = getattr(self.dataset, "targets", None)
        if reader is not None and hasattr(reader, "label_key"):
            targets = reader.dataset[
                reader.label_key
            ]  # a column of a Hugging Face data set: no image is read
        return None if targets is None else np.asarray(targets, np.int64)


def content_of(images: LabelledImages) -> str | None:
    """What is known of the content of an opened set beside its files: of what is in memory, all of it."""
    if isinstance(images, ArrayImages):
        return digest(_hash_of(images.images), _hash_of(images.targets))
    if not isinstance(images, FactoryImages):
        return None
    dataset, held = images.dataset, getattr(images.dataset, "data", None)
    if isinstance(dataset, list):  # a stream that was read
        return digest([[_hash_of(np.asarray(image)), int(target)] for image, target, *_ in dataset])
    if isinstance(held, np.ndarray | torch.Tensor):
        return digest(
            _hash_of(np.asarray(held)), None if images.targets is None else _hash_of(images.targets)
        )
    kept = getattr(getattr(dataset, "reader", None), "dataset", None)
    return getattr(kept, "_fingerprint", None)  # of a Hugging Face data set


def _hash_of(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}{xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)}"


@cache
def _rendered(num: int, stream: int) -> np.ndarray:
    return render_glyphs(num, stream=stream)
