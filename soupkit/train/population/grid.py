"""Ranks as a grid, population × data: members are spread over one dimension, the batches of a member over the
other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from soupkit.errors import RecipeError
from soupkit.task.task import Batch, Task
from soupkit.world import World


class Grid:
    """Which members this rank trains, which part of their batches, and the sums over the population.

    With P population ranks and R ranks per member, rank = p·R + r (torch's DeviceMesh, dimensions
    "population" and "data"). members: the numbers of this rank's members. num_members: of all. Alone, every
    collective does nothing. Raises RecipeError when ranks and members do not fit.
    """

    def __init__(self, world: World, num_members: int, *, ranks_per_member: int = 0) -> None:
        self.world, self.num_members = world, num_members
        self.num_parts = ranks_per_member or max(1, world.size // num_members)
        self.population_size = world.size // self.num_parts
        if self.population_size * self.num_parts != world.size or self.population_size > num_members:
            raise RecipeError(
                f"{world.size} ranks cannot share {num_members} members, {self.num_parts} per member",
                hint=f"start a divisor or a multiple of {num_members} ranks, or give --ranks-per-member",
            )
        self.position, self.part = divmod(world.rank, self.num_parts)
        first, end = (num_members * p // self.population_size for p in (self.position, self.position + 1))
        self.members = range(first, end)
        self._mesh = self._join() if world.size > 1 else None

    def _join(self) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        kind = self.world.torch_device().type
        return init_device_mesh(
            kind, (self.population_size, self.num_parts), mesh_dim_names=("population", "data")
        )

    @property
    def leads(self) -> bool:
        """Whether this rank is the one of its members' ranks that saves them."""
        return self.part == 0

    def sum(self, tensor: Tensor) -> None:
        """Sum over the population, in place: one all-reduce."""
        work = self.begin_sum(tensor)
        if work is not None:
            work.wait()

    def begin_sum(self, tensor: Tensor) -> Any:
        """The same without waiting: the work to wait for, None alone. The tensor must be left alone until
        then."""
        if self.population_size == 1 or self._mesh is None:
            return None
        import torch.distributed as dist

        return dist.all_reduce(tensor, group=self._mesh["population"].get_group(), async_op=True)

    def shared(self, task: Task) -> nn.Module:
        """The model, whose gradients are averaged over the ranks that share its batches
        (DistributedDataParallel)."""
        model = task.model
        if self.num_parts == 1 or self._mesh is None:
            return model
        group, unused = self._mesh["data"].get_group(), task.saved is not model  # what made its head rests
        return nn.parallel.DistributedDataParallel(model, process_group=group, find_unused_parameters=unused)

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """This rank's part of a batch, and its weight: with it, the mean of the ranks' gradients is the
        batch's."""
        if self.num_parts == 1:
            return batch, 1.0
        chosen = torch.tensor_split(torch.arange(len(batch)), self.num_parts)[self.part]
        part = batch.of(*(tensor[chosen.to(tensor.device)] for tensor in batch.tensors))
        return part, len(chosen) * self.num_parts / len(batch)
