"""What ranks do in the tests of `World`; a module of its own, so that ranks can import it."""

from __future__ import annotations

import time
from typing import Any

import torch

from soupkit.world import World


def groups_one_after_another() -> list[list[int]]:
    """Rank 0 is the last to leave each group: the others are at the next one's door before it."""
    import torch.distributed as dist

    world, leave = World("cpu"), dist.destroy_process_group

    def late() -> None:
        time.sleep(0.3 if world.is_main else 0)
        leave()

    dist.destroy_process_group = late
    found = []
    for number in range(3):
        with world.group():
            found.append(world.gather(10 * number + world.rank))
    return found


def collectives() -> dict[str, Any]:
    """Every collective once, in one group inside another, in a group that is opened twice."""
    world = World("cpu")
    with world.group(), world.group():
        total = torch.tensor([1.0, 10.0 * world.rank], dtype=torch.float64)
        world.all_reduce(total)
        told = world.broadcast({"from": world.rank})
        first = {"total": total.tolist(), "told": told, "all": world.gather(world.rank)}
    with world.group():
        world.barrier()
        again = world.gather(world.rank + 100)
    return {**first, "again": again, "main": world.is_main, "share": list(world.share(7))}
