"""Batches hold the right images whatever the order, the memory and the workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from soupkit.errors import TaskError
from soupkit.task.images.data import Part
from soupkit.task.images.examples import ImageExamples
from soupkit.task.images.transforms import ImageSettings

SETTINGS = ImageSettings((1, 4, 4), (0.0,), (1.0,), "nearest", 1.0, "squash")


class Counted:
    """Image i is grey i; remembers which were decoded."""

    def __init__(self, num: int, *, known: bool = True) -> None:
        self.num, self.decoded = num, [0] * num
        self.targets = np.arange(num) % 3 if known else None

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.decoded[index] += 1
        return Image.new("L", (8, 8), index), index % 3


def examples(num: int, *, known: bool = True, **options: int) -> tuple[ImageExamples, Counted]:
    pool = Counted(num, known=known)
    return ImageExamples(Part(pool, np.arange(num)[::-1]), SETTINGS, **options), pool


def greys(batches: object) -> list[int]:
    return [round(image.mean().item() * 255) for batch in batches for image in batch.images]  # type: ignore[attr-defined]


@pytest.mark.parametrize("max_bytes", [1 << 20, 0])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_pass_has_the_images_asked_for(max_bytes: int, workers: int) -> None:
    shown, _ = examples(23, max_bytes=max_bytes, workers=workers)
    backwards = list(range(22, -1, -1))
    some = np.array([5, 1, 9, 22])
    assert greys(shown.batches(batch_size=4, indices=some)) == [17, 21, 13, 0]
    assert greys(shown.batches(batch_size=10)) == backwards
    assert greys(shown.batches(batch_size=7)) == backwards
    for batch in shown.batches(batch_size=5):
        assert batch.images.dtype == torch.float32
        assert (batch.targets == (batch.images[:, 0, 0, 0] * 255).round().long() % 3).all()


def test_images_are_decoded_once_where_memory_allows() -> None:
    shown, pool = examples(10)
    for _ in range(3):
        list(shown.batches(batch_size=4))
    assert pool.decoded == [1] * 10


def test_images_are_decoded_each_time_where_it_does_not() -> None:
    shown, pool = examples(10, max_bytes=10 * 16 - 1)
    for _ in range(3):
        list(shown.batches(batch_size=4))
    assert pool.decoded == [3] * 10


def test_work_stops_with_the_caller() -> None:
    shown, pool = examples(100)
    next(iter(shown.batches(batch_size=8)))
    assert sum(pool.decoded) == 8


def test_labels_are_found_by_decoding_where_nothing_else_tells() -> None:
    shown, _ = examples(5, known=False)
    assert shown.targets.tolist() == [1, 0, 2, 1, 0]


def test_an_example_without_a_label_is_refused() -> None:
    shown, pool = examples(5)
    pool.targets = np.array([0, 1, -1, 0, 1])
    with pytest.raises(TaskError, match="no label"):
        next(shown.batches(batch_size=5))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_draw_nothing_from_torch_generator(workers: int) -> None:
    shown, _ = examples(6, max_bytes=0, workers=workers)
    before = torch.get_rng_state()
    list(shown.batches(batch_size=3))
    assert torch.equal(torch.get_rng_state(), before)
