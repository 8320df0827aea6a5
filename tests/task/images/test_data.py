"""Splits are disjoint, deterministic, balanced, and never larger than the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from soupkit.errors import TaskError
from soupkit.recipe.shared import DataOptions
from soupkit.task.images.data import Splits, balanced_order, open_data, overlap
from soupkit.task.images.pools import ArrayImages


def digits(**values: object) -> Splits:
    return open_data(DataOptions(data="digits", **values))  # type: ignore[arg-type]


def indices(splits: Splits) -> list[set[int]]:
    return [set(part.indices.tolist()) for part in (splits.train, splits.held_out, splits.test)]


@given(st.integers(1, 900), st.integers(1, 500), st.one_of(st.none(), st.integers(1, 390)), st.integers(0, 3))
def test_digits_are_divided(num_train: int, num_held_out: int, num_test: int | None, seed: int) -> None:
    if num_test is None and num_train + num_held_out > 1000:
        return
    splits = digits(num_train=num_train, num_held_out=num_held_out, num_test=num_test, split_seed=seed)
    train, held_out, test = indices(splits)
    assert [len(train), len(held_out), len(test)] == [num_train, num_held_out, num_test or 797]
    assert len(train | held_out | test) == len(train) + len(held_out) + len(test)


def test_images_and_labels_are_those_of_scikit_learn() -> None:
    splits, source = digits(num_train=50), load_digits()
    for index in (0, 7, 49):
        image, target = splits.train[index]
        number = splits.train.indices[index]
        assert target == source.target[number]
        assert image.mode == "L"
        np.testing.assert_allclose(np.asarray(image), source.images[number] / 16 * 255, atol=0.5)


def test_the_same_options_give_the_same_splits_and_others_do_not() -> None:
    first = digits(num_train=100)
    assert digits(num_train=100).description == first.description
    assert digits(num_train=100, split_seed=1).description["digest"] != first.description["digest"]
    assert indices(digits(num_train=100, split_seed=1)) != indices(first)


def test_defaults_leave_ten_percent_to_select_with() -> None:
    assert digits().description["sizes"] == {"train": 900, "held_out": 100, "test": 797}


def test_training_examples_do_not_become_test_examples_in_another_command() -> None:
    fitted = digits(num_train=100, num_held_out=700)
    for other in (digits(), digits(num_test=300), digits(num_train=300, num_held_out=300, num_test=100)):
        assert not indices(fitted)[0] & indices(other)[2]
        assert not indices(fitted)[1] & indices(other)[2]
        assert indices(other)[2] <= indices(fitted)[2]
        assert overlap(fitted, "train", other, "test").sum() == 0
        assert not (indices(other)[0] | indices(other)[1]) & indices(digits())[2]
    other_seed = digits(split_seed=1)
    assert (
        overlap(fitted, "train", other_seed, "test").sum()
        == len(indices(fitted)[0] & indices(other_seed)[2])
        > 0
    )


@pytest.mark.parametrize(
    "values",
    [
        {"num_train": 1500, "num_held_out": 500},
        {"num_held_out": 1000},
        {"num_test": 1797},
        {"num_train": 1000, "num_held_out": 1, "num_test": 797},
    ],
)
def test_more_than_there_is_is_refused_with_the_numbers(values: dict[str, int]) -> None:
    with pytest.raises(TaskError, match=r"(1000|1797) examples to split") as caught:
        digits(**values)
    assert all(str(number) in caught.value.message for number in values.values())


@pytest.mark.parametrize("name", ["num_train", "num_held_out", "num_test"])
def test_none_of_something_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match=f"{name} is 0"):
        digits(**{name: 0})


def test_no_data_is_refused() -> None:
    with pytest.raises(TaskError, match="no data"):
        open_data(DataOptions())


@given(st.lists(st.integers(5, 60), min_size=2, max_size=6), st.integers(0, 99), st.data())
def test_every_stretch_of_the_order_is_balanced(counts: list[int], seed: int, data: st.DataObject) -> None:
    targets = np.repeat(np.arange(len(counts)), counts)
    order = balanced_order(ArrayImages(np.zeros((len(targets), 1, 1), np.uint8), targets), seed)
    assert sorted(order.tolist()) == list(range(len(targets)))
    start = data.draw(st.integers(0, len(targets) - 1))
    stop = data.draw(st.integers(start + 1, len(targets)))
    expected = (stop - start) * np.array(counts) / len(targets)
    found = np.bincount(targets[order[start:stop]], minlength=len(counts))
    # A class strays by at most one cell of its own at either end, and the stretch by as much as all others
    # do.
    assert (np.abs(found - expected) <= 2 * len(counts)).all()


def test_glyphs_have_three_streams_of_their_own() -> None:
    splits = open_data(DataOptions(data="glyphs", num_train=30, num_held_out=20))
    assert splits.description["sizes"] == {"train": 30, "held_out": 20, "test": 1000}
    assert splits.characters
    shown = {np.asarray(part[i][0]).tobytes() for part in (splits.train, splits.held_out) for i in range(20)}
    assert len(shown) == 40
    assert overlap(splits, "train", splits, "test").sum() == 0


def folder(root: Path, layout: dict[str, int]) -> Path:
    """Image files of distinct grey: {path below root: how many}."""
    grey = 0
    for name, num in layout.items():
        (root / name).mkdir(parents=True)
        for i in range(num):
            grey += 1
            Image.new("L", (6, 5), grey).save(root / name / f"{i}.png")
    return root


def greys(part: object) -> set[int]:
    return {part[i][0].getpixel((0, 0)) for i in range(len(part))}  # type: ignore[index, arg-type]


def test_class_folders_alone_are_divided(tmp_path: Path) -> None:
    splits = open_data(DataOptions(data=str(folder(tmp_path, {"cat": 50, "dog": 50}))))
    assert splits.description["sizes"] == {"train": 72, "held_out": 8, "test": 20}
    assert splits.class_names == ("cat", "dog")
    assert not splits.characters
    train, held_out, test = greys(splits.train), greys(splits.held_out), greys(splits.test)
    assert len(train | held_out | test) == 100
    assert np.bincount(splits.test.targets).tolist() == [10, 10]  # type: ignore[arg-type]
    image, target = splits.train[0]
    assert target == (image.getpixel((0, 0)) > 50)


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_one_evaluation_folder_is_the_test_set(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path, {"train/a": 20, "train/b": 20, f"{name}/a": 3, f"{name}/b": 4})
    splits = open_data(DataOptions(data=str(root)))
    assert splits.description["sizes"] == {"train": 36, "held_out": 4, "test": 7}
    assert greys(splits.test) == set(range(41, 48))
    assert splits.description["origin"] == {"train": "train", "held_out": "train", "test": name}


def test_three_folders_are_three_splits(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train/a": 5, "train/b": 5, "val/b": 4, "test/a": 3})
    splits = open_data(DataOptions(data=str(root)))
    assert [greys(part) for part in (splits.held_out, splits.test)] == [
        set(range(11, 15)),
        set(range(15, 18)),
    ]
    assert splits.held_out.targets is not None
    assert splits.held_out.targets.tolist() == [1] * 4
    assert len(splits.train) == 10
    few = open_data(DataOptions(data=str(root), num_train=4, num_held_out=2, num_test=1))
    assert few.description["sizes"] == {"train": 4, "held_out": 2, "test": 1}
    with pytest.raises(TaskError, match="held-out has 4 examples, 9 were asked for"):
        open_data(DataOptions(data=str(root), num_held_out=9))


def test_a_class_that_was_not_trained_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train/a": 5, "val/a": 2, "val/zebra": 2})
    with pytest.raises(TaskError, match="zebra"):
        open_data(DataOptions(data=str(root)))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no images"):
        open_data(DataOptions(data=str(tmp_path)))


def test_a_broken_image_is_named_not_skipped(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 10, "b": 10})
    (root / "a" / "3.png").write_bytes(b"not a picture")
    splits = open_data(DataOptions(data=str(root)))
    pool = splits.train.pool
    with pytest.raises(TaskError, match=r"3\.png cannot be decoded"):
        [pool[i] for i in range(len(pool))]


def test_a_renamed_file_is_another_data_set(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": 10, "b": 10})
    before = open_data(DataOptions(data=str(root))).description
    assert open_data(DataOptions(data=str(root))).description == before
    (root / "a" / "3.png").rename(root / "a" / "33.png")
    assert open_data(DataOptions(data=str(root))).description != before


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """MNIST's files with twelve images for training and four for testing, as torchvision keeps them
    unpacked."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, num in (("train", 12), ("t10k", 4)):
        images = np.full((num, 28, 28), 9, np.uint8)
        head = np.array([2051, num, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = (np.arange(num) % 10).astype(np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            np.array([2049, num], ">i4").tobytes() + labels.tobytes()
        )
    return tmp_path


def test_torchvision_through_timm_factory(mnist: Path) -> None:
    splits = open_data(DataOptions(data="torch/mnist", data_dir=mnist, num_held_out=2))
    assert splits.description["sizes"] == {"train": 10, "held_out": 2, "test": 4}
    assert splits.description["origin"]["test"] == "validation"
    assert splits.characters
    assert len(splits.class_names) == 10
    image, target = splits.test[3]
    assert (image.size, target) == ((28, 28), 3)
    assert splits.test.targets is not None
    assert splits.test.targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        (DataOptions(data="cifar10"), "no data set 'cifar10'", "torch/cifar10"),
        (DataOptions(data="torch/cifar10"), "needs a place", "--data-dir"),
        (DataOptions(data="torch/cifar10", data_dir=Path("/nowhere")), "timm cannot open", "--download"),
        (DataOptions(data="torch/nosuch", data_dir=Path("/nowhere")), "nosuch", "--data-dir"),
        (DataOptions(data="nosuch/thing"), "no data set", "torch/thing"),
    ],
)
def test_data_that_are_not_there(options: DataOptions, words: str, hint: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        open_data(options)
    assert hint in str(caught.value.hint)


def test_labels_of_a_hugging_face_column_cost_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm's reader for hfds/ keeps them."""
    import timm.data

    class Reader:
        label_key, class_to_idx = "label", {"cat": 0, "dog": 1}
        dataset: ClassVar = {"label": [0, 1] * 10}

    class Images:
        reader = Reader()

        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> object:
            raise AssertionError("an image was read")

    monkeypatch.setattr(timm.data, "create_dataset", lambda *_, **__: Images())
    splits = open_data(DataOptions(data="hfds/some/thing", num_train=6))
    assert splits.description["origin"] == {"train": "train", "held_out": "validation", "test": "test"}
    assert splits.class_names == ("cat", "dog")
    assert np.bincount(splits.train.targets).tolist() == [3, 3]  # type: ignore[arg-type]


def test_streamed_data_are_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory that only streams, as tfds/ and wds/ do."""
    import timm.data
    import torch

    class Stream(torch.utils.data.IterableDataset[tuple[Image.Image, int]]):
        def __init__(self, num: int) -> None:
            self.num = num

        def __iter__(self):  # type: ignore[no-untyped-def]
            return ((Image.new("RGB", (4, 4), (i, 0, 0)), i % 3) for i in range(self.num))

    def factory(_: str, *, split: str, **__: object) -> Stream:
        if split == "test":
            raise ValueError("no such split")
        return Stream({"train": 30, "validation": 9}[split])

    monkeypatch.setattr(timm.data, "create_dataset", factory)
    options = DataOptions(data="tfds/thing", num_train=12, num_held_out=3)
    splits = open_data(options)
    assert splits.description["sizes"] == {"train": 12, "held_out": 3, "test": 9}
    assert len(splits.train.pool) == 15
    assert splits.class_names == ("0", "1", "2")
    assert splits.train[0][0].getpixel((0, 0))[0] == splits.train.indices[0]
    assert len(open_data(replace(options, num_train=None)).train.pool) == 30


class _Listed:
    """A data set of 20 examples as timm's factory returns one."""

    targets: ClassVar = [0, 1] * 10
    classes: ClassVar = ["cat", "dog"]

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ConnectionError("no route to the hub"), "no route"),
        (OSError("[Errno 28] no space left on device"), "no space"),
        (ValueError("checksum of test.tar differs"), "checksum"),
        (FileNotFoundError("data/test/0.tar"), "test/0.tar"),
        (ImportError("install datasets"), "install"),
    ],
)
@pytest.mark.parametrize("name", ["hfds/some/thing", "wds/some", "tfds/some"])
def test_a_test_split_out_of_reach_is_not_drawn_from_train(
    name: str, error: Exception, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import timm.data

    def create(_data: str, split: str, **_: object) -> _Listed:
        if split == "test":
            raise error
        return _Listed()

    monkeypatch.setattr(timm.data, "create_dataset", create)
    with pytest.raises(TaskError, match=word):
        open_data(DataOptions(data=name, data_dir=tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Unknown split \"test\". Should be one of ['train', 'validation']."),
        ValueError("Unknown split 'test'. Should be one of ['train']."),
        RuntimeError("split test not found in info (dict_keys(['train']))"),
        KeyError("test"),
    ],
)
def test_a_data_set_without_a_test_split_is_divided(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm.data

    def create(_data: str, split: str, **_: object) -> _Listed:
        if split != "train":
            raise type(error)(str(error.args[0]).replace("test", split))
        return _Listed()

    monkeypatch.setattr(timm.data, "create_dataset", create)
    assert set(open_data(DataOptions(data="hfds/some/thing")).description["origin"].values()) == {"train"}
