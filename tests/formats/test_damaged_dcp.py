"""Folders of torch.distributed.checkpoint that are cut, changed, incomplete or hostile: a message, never
more."""

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.formats.write_dcp import write_dcp
from soupkit.checkpoint.header import Slot
from soupkit.errors import CheckpointError, SoupkitError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dcp(
        tmp_path,
        {"a.weight": Slot("F32", (3, 4)), "b": Slot("BF16", (5,))},
        lambda name: torch.arange(12.0).reshape(3, 4) if "a" in name else torch.ones(5).bfloat16(),
    )
    return tmp_path


def rewrite(folder: Path, change: Callable[[Any], None]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def lose_chunk(metadata: Metadata) -> None:
    metadata.state_dict_metadata["a.weight"].chunks.clear()


def overlap(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata["a.weight"].chunks
    chunks[0].sizes = torch.Size((2, 4))
    chunks.append(type(chunks[0])(torch.Size((1, 0)), torch.Size((1, 4))))
    storage = metadata.storage_data
    index = next(each for each in storage if each.fqn == "a.weight")
    storage[type(index)("a.weight", (1, 0))] = storage[index]


def beyond(metadata: Metadata) -> None:
    metadata.state_dict_metadata["a.weight"].chunks[0].sizes = torch.Size((4, 4))


def outside(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = "../../etc/passwd"


def transformed(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["zstd"]


def huge(metadata: Metadata) -> None:
    tensor = metadata.state_dict_metadata["a.weight"]
    tensor.size = tensor.chunks[0].sizes = torch.Size((2**40, 2**40))


def long(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.length = 10**9


CHANGES = {
    lose_chunk: r"\.metadata: tensor 'a.weight' .* no pieces",
    overlap: "pieces that overlap",
    beyond: "reaches beyond it",
    outside: "which is no file beside it",
    transformed: "went through",
    long: "ends before",
    huge: "bytes to a part",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_is_told(folder: Path, change: Callable[[Any], None]) -> None:
    if change is overlap:  # as many numbers as there should be, some of them twice
        rewrite(folder, lambda metadata: metadata.state_dict_metadata.pop("b"))
    rewrite(folder, change)
    message = "pieces" if change is overlap else CHANGES[change]
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder)


def test_a_missing_file_and_another_tensor_are_told(folder: Path) -> None:
    def swap(metadata: Metadata) -> None:
        first, second = metadata.storage_data.values()
        first.offset, second.offset = second.offset, first.offset
        first.length, second.length = second.length, first.length

    rewrite(folder, swap)
    with pytest.raises(CheckpointError, match="was expected"):
        dict(Checkpoint(folder))
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match="which is not there"):
        Checkpoint(folder)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch it-ran",)


def test_nothing_in_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a class of torch is expected, which is refused, nor where nobody looks."""
    monkeypatch.chdir(folder)

    def beside(metadata: Metadata) -> None:
        metadata.storage_meta = Evil()  # type: ignore[assignment]

    rewrite(folder, beside)
    assert len(Checkpoint(folder)) == 2
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="system' where a Metadata was expected"):
        Checkpoint(folder)
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_mutations_are_read_or_refused(folder: Path, name: str) -> None:
    path, draw = folder / name, np.random.default_rng(0)
    content = path.read_bytes()
    for _ in range(120):
        changed = bytearray(content)
        for position in draw.integers(0, len(content), int(draw.integers(1, 4))):
            changed[position] = draw.integers(256)
        path.write_bytes(changed[int(draw.random() < 0.1) :])
        with suppress(SoupkitError):
            dict(Checkpoint(folder))
