"""One file for each rank: what DTensor and ShardedTensor say of themselves puts the whole together."""

import shutil
from pathlib import Path

import pytest
import torch
from formats.test_dcp import differing

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import CheckpointError, ReferenceError


@pytest.mark.parametrize(("name", "whole"), [("ranks", "fsdp2"), ("shards", "fsdp1"), ("placed", "placed")])
def test_nothing_differs(sharded: Path, tmp_path: Path, name: str, whole: str) -> None:
    folder = sharded / name
    if name == "placed":
        folder = tmp_path
        for file in sharded.glob("placed_rank*.pt"):
            shutil.copy(file, folder)
    assert differing(Checkpoint(folder), Checkpoint(sharded / f"{whole}.safetensors")) == 0


def test_a_missing_rank_is_told(sharded: Path, tmp_path: Path) -> None:
    files = sorted((sharded / "ranks").iterdir())
    for file in files[1:]:
        shutil.copy(file, tmp_path)
    if len(files) > 1:
        with pytest.raises(ReferenceError, match="lacks the file of rank 0"):
            Checkpoint(tmp_path)


def test_plain_tensors_do_not_say_how_they_fit(tmp_path: Path) -> None:
    for rank in range(2):
        torch.save({"w": torch.ones(3)}, tmp_path / f"rank{rank}.pt")
    with pytest.raises(CheckpointError, match="plain tensors"):
        Checkpoint(tmp_path)
