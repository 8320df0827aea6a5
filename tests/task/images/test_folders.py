"""Folders of images whose names and links would make test examples of training examples, or the other way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from soupkit.errors import TaskError
from soupkit.recipe.shared import DataOptions
from soupkit.task.images.data import Splits, open_data


def fill(folder: Path, num: int = 20, *, first: int = 0) -> None:
    """Images of two classes, each another grey."""
    for k in range(first, first + num):
        path = folder / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), k, np.uint8)).save(path)


def opened(root: Path) -> Splits:
    return open_data(DataOptions(data=str(root)))


def dangling(root: Path) -> None:
    fill(root / "train")
    (root / "test").symlink_to(root / "not mounted")


def a_file(root: Path) -> None:
    fill(root / "train")
    (root / "val").write_bytes(b"an archive that nobody unpacked")


def two_of_one(root: Path) -> None:
    for number, name in enumerate(("train", "val", "validation", "test")):
        fill(root / name, first=20 * number)


def two_cases(root: Path) -> None:
    for number, name in enumerate(("train", "Test", "test")):
        fill(root / name, first=20 * number)


def no_train(root: Path) -> None:
    fill(root / "images")
    fill(root / "test", first=20)


def other_words(root: Path) -> None:
    fill(root / "training_set")
    fill(root / "test_set", first=20)


def folds(root: Path) -> None:
    for number in range(3):
        fill(root / f"fold{number}", first=20 * number)


def one_above(root: Path) -> None:
    for number, name in enumerate(("train", "test")):
        fill(root / "data" / name, first=20 * number)


def linked_folder(root: Path) -> None:
    fill(root / "train")
    (root / "test").symlink_to("train")


def linked_class(root: Path) -> None:
    fill(root / "train")
    fill(root / "test", first=20)
    (root / "test" / "a").rename(root / "aside")
    (root / "test" / "a").symlink_to(root / "train" / "a")


def hard_links(root: Path) -> None:
    fill(root / "train")
    fill(root / "test", first=20)
    os.link(root / "train" / "a" / "0.png", root / "test" / "b" / "new name.png")


def one_evaluation_set(root: Path) -> None:
    fill(root / "train")
    fill(root / "val", first=20)
    (root / "test").symlink_to("val")


def repeated(root: Path) -> None:
    """Oversampled by links: a file is in train and in what is drawn from it."""
    fill(root)
    for path in list((root / "a").iterdir()):
        (root / "a" / f"again-{path.name}").symlink_to(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (dangling, "test is no folder that can be opened"),
        (a_file, "val is no folder that can be opened"),
        (two_of_one, "has val and validation, which stand for the same split"),
        (two_cases, "has Test and test, which stand for the same split"),
        (no_train, "has test, but no folder of the name train"),
        (other_words, "the class 'a' lies in test_set/a and training_set/a"),
        (folds, "the class 'a' lies in fold0/a and fold1/a"),
        (one_above, "the class 'a' lies in data/test/a and data/train/a"),
        (linked_folder, "18 of the 20 test images are train images too"),
        (linked_class, "of the 20 test images are train images too"),
        (hard_links, "1 of the 21 test images are train images too"),
        (one_evaluation_set, "20 of the 20 test images are held-out images too"),
        (repeated, "images are train images too"),
    ],
)
def test_a_split_that_would_be_part_of_another_is_refused(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path)
    with pytest.raises(TaskError) as caught:
        opened(tmp_path)
    assert words in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAINING", "Val"), ("train", "EVAL")])
def test_splits_are_known_in_any_case(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path / train)
    fill(tmp_path / test, 10, first=20)
    splits = opened(tmp_path)
    assert splits.description["origin"] == {"train": train, "held_out": train, "test": test}
    assert splits.description["sizes"] == {"train": 18, "held_out": 2, "test": 10}
