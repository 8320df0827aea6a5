"""Ranks: alone everything is a no-op; two processes meet over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed.ranks import in_ranks
from distributed.world_work import collectives, groups_one_after_another

from soupkit.errors import RecipeError
from soupkit.world import World


def test_alone_collectives_do_nothing() -> None:
    world, tensor = World("cpu"), torch.ones(3)
    with world.group():
        world.all_reduce(tensor)
        world.barrier()
        assert world.broadcast("a") == "a"
        assert world.gather("a") == ["a"]
    assert tensor.tolist() == [1, 1, 1]
    assert world.is_main
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("num", "size"), [(7, 3), (2, 4), (0, 2), (12, 4), (5, 1)])
def test_shares_are_contiguous_balanced_and_complete(num: int, size: int) -> None:
    shares = [World(rank=rank, size=size).share(num) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(num))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    world = World("cpu", 2)
    assert (world.rank, world.size, world.local_rank, world.is_main) == (3, 8, 1, False)
    assert world.alone() == World("cpu", 2, rank=0, size=1, local_rank=1)


def test_ranks_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RecipeError, match="cannot find each other"), World("cpu", rank=0, size=2).group():
        pass


def test_a_rank_may_open_the_next_group_while_another_leaves_the_last(tmp_path: Path) -> None:
    expected = [[10 * number, 10 * number + 1] for number in range(3)]
    found = in_ranks(groups_one_after_another, size=2, folder=tmp_path / "processes")
    assert found == [expected, expected]


def test_two_processes_reduce_tell_and_gather(tmp_path: Path) -> None:
    first, second = in_ranks(collectives, size=2, folder=tmp_path / "processes")
    same = {"total": [2.0, 10.0], "told": {"from": 0}, "all": [0, 1], "again": [100, 101]}
    assert first == {**same, "main": True, "share": [0, 1, 2]}
    assert second == {**same, "main": False, "share": [3, 4, 5, 6]}
