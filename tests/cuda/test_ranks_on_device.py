"""Ranks and their devices: who sums by what, and two processes on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cuda.conftest import Gpu
from cuda.populations import in_rank, population_in, recipe
from distributed.ranks import in_ranks

from soupkit.errors import RecipeError
from soupkit.events import silent
from soupkit.world import World


@pytest.mark.parametrize(
    ("device", "on_this_machine", "backend"),
    [("cuda", 2, "cpu:gloo,cuda:nccl"), ("cuda:0", 2, "gloo"), ("cuda:0", 1, "cpu:gloo,cuda:nccl")],
)
def test_nccl_sums_unless_ranks_share_a_device(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, device: str, on_this_machine: int, backend: str
) -> None:
    joined: list[Any] = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_machine))
    monkeypatch.setattr("soupkit.world._meeting", lambda *_: torch.distributed.HashStore())
    monkeypatch.setattr("torch.distributed.init_process_group", lambda name, **_: joined.append(name))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with World(device, rank=0, size=2, local_rank=0).group():
        assert torch.cuda.current_device() == 0
    assert joined == [backend]


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_rank_without_a_device_of_its_own_is_told_how_to_share(gpu: Gpu, device: str) -> None:
    there = torch.cuda.device_count()
    world = World(device, rank=there, size=there + 1, local_rank=there)
    with pytest.raises(RecipeError, match=f"no GPU {there}; this torch sees {there}") as error:
        world.torch_device()
    assert "--device cuda:0" in str(error.value.hint)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param("cuda:0", marks=pytest.mark.cuda),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
)
def test_two_ranks_learn_what_one_does(device: str, tmp_path: Path) -> None:
    """On one device by gloo, on two by nccl. Sums of two rows are exact in any order; 1e-4 is for kernels."""
    needed = {"cpu": 0, "cuda:0": 1, "cuda": 2}[device]
    if torch.cuda.device_count() < needed:
        pytest.skip(f"{needed} CUDA devices are needed: torch sees {torch.cuda.device_count()}")
    alone = population_in(World("cpu", threads=1, rank=0, size=1), recipe())
    alone.train(silent)
    for found in in_ranks(in_rank, device, size=2, folder=tmp_path):
        assert found["sums"] == [3.0] * 3
        assert found["on the CPU"] == [2.0] * 2
        assert found["told"] == {"from": 0}
        for losses, expected in zip(found["losses"], alone.history.losses, strict=True):
            assert losses == pytest.approx(expected, rel=1e-4)
