"""Where a job runs: device, threads, and which of how many processes this is. Torch is imported only when it
is needed.

`torchrun --nproc-per-node N -m soupkit …` starts N ranks of one job. Every collective is a no-op alone, so a
job has one code path for one rank and for many.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from soupkit.asked import OnDevice, Threaded
from soupkit.errors import RecipeError, SoupkitError, brief

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""How long ranks wait for each other: one may hash or write for long. A rank that dies ends the others at
once."""


def available_cores() -> int:
    """The cores that this process may use (affinity, not what the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Where soupkit keeps what it can compute again."""
    if own := os.environ.get("SOUPKIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soupkit"


def _from_launcher(name: str, default: int) -> Any:
    """A number that torchrun sets in the environment of every rank."""
    return field(default_factory=lambda: environment_number(name, default))


def environment_number(name: str, default: int, *, least: int = 0) -> int:
    """A whole number from the environment; `default` when it is not set. Raises RecipeError for what is
    none."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) < least:
        raise RecipeError(
            f"{name} is {brief(text)} in the environment, expected a whole number from {least} on",
            hint=f"unset {name}",
        )
    return int(text)


def _threads_of_libraries() -> int:
    """OMP_NUM_THREADS, of whose list (one number per level) the first counts; 0 when it is not set."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if text and not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise RecipeError(
            f"OMP_NUM_THREADS is {brief(text)} in the environment, expected a number of threads",
            hint="unset OMP_NUM_THREADS, or give --threads",
        )
    return int(text or 0)


@dataclass(frozen=True)
class World:
    """The machine as one job sees it.

    device: "auto", "cpu", "cuda" or "cuda:i"; threads: worker threads of the data plane and of torch on the
    CPU. rank of size processes, local_rank on this machine: torchrun's, else 0 of 1.
    """

    device: str = "auto"
    threads: int = 0
    rank: int = _from_launcher("RANK", 0)
    size: int = _from_launcher("WORLD_SIZE", 1)
    local_rank: int = _from_launcher("LOCAL_RANK", 0)

    @property
    def num_threads(self) -> int:
        """What was asked for, else OMP_NUM_THREADS, as every numerical library reads it, else every core."""
        return self.threads or _threads_of_libraries() or available_cores()

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that reports and writes."""
        return self.rank == 0

    def for_recipe(self, recipe: object) -> World:
        """The same ranks with the device and threads that a recipe asks for, where it has them."""
        device = recipe.device if isinstance(recipe, OnDevice) else "auto"
        return replace(self, device=device, threads=recipe.threads if isinstance(recipe, Threaded) else 0)

    def alone(self) -> World:
        """The same machine without the other ranks: for work that one rank does by itself."""
        return replace(self, rank=0, size=1)

    def torch_device(self) -> torch.device:
        """Resolve `device`, once models come in; a GPU becomes torch's current one, whose streams, generator
        and pinned memory are meant where none is named. Raises RecipeError when there is no such device."""
        import torch

        torch.set_num_threads(self.num_threads)
        number = self._number()
        if number is None:
            return torch.device("cpu")
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def check_device(self) -> None:
        """Refuse a device that is not there, before any work. Raises RecipeError."""
        if self.device != "auto":  # which takes what there is, and needs no torch before models come in
            self._number()

    def _number(self) -> int | None:
        """Which GPU; None: the CPU."""
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", self.device):
            raise RecipeError(
                f"device is {brief(self.device)}, expected auto, cpu, cuda or cuda:i", hint="--device cuda:0"
            )
        if self.device == "cpu":
            return None
        import torch

        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device == "auto" and not there:
            return None
        number = int(self.device.partition(":")[2] or self.local_rank)
        if number >= there:
            one = "give all ranks one device (--device cuda:0), or start fewer"
            none = "--device cpu, or install a CUDA build of torch"
            raise RecipeError(
                f"device {self.device!r}: there is no GPU {number}; this torch sees {there}",
                hint="--device cuda:0" if there and self.size == 1 else one if there else none,
            )
        return number

    @property
    def shares_device(self) -> bool:
        """Whether the ranks of this machine are all on one GPU, which nccl refuses: they sum by gloo."""
        return ":" in self.device and self.size > 1 and environment_number("LOCAL_WORLD_SIZE", self.size) > 1

    @contextmanager
    def group(self) -> Iterator[None]:
        """The ranks' process group: gloo, and nccl for tensors on CUDA, unless ranks share a device. Nothing
        alone, or inside another `group`.

        Raises RecipeError when the ranks cannot find each other.
        """
        if self.size == 1 or _is_joined():
            yield
            return
        import torch.distributed as dist

        device = self.torch_device()
        by_nccl = device.type == "cuda" and not self.shares_device
        try:
            backend = "cpu:gloo,cuda:nccl" if by_nccl else "gloo"
            store = dist.PrefixStore(  # type: ignore[attr-defined]
                f"group {next(_GROUPS)}", _meeting(self.rank, self.size)
            )
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE
            )
        except (ValueError, RuntimeError) as error:
            raise RecipeError(
                f"the {self.size} ranks cannot find each other: {error}",
                hint="start them with torchrun --nproc-per-node N -m soupkit …",
            ) from error
        try:
            yield
        finally:
            dist.destroy_process_group()

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Replace `tensor` by its sum over all ranks, in place; the same bits on every rank."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)

    def broadcast(self, value: object) -> Any:
        """Rank 0's value, on every rank; anything that pickles."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank; anything that pickles."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)  # dist.barrier would pick a backend and a device; objects travel by the CPU's

    def in_main(self, call: Callable[[], T]) -> T:
        """What rank 0 alone computes, on every rank; a SoupkitError of it is raised on every rank."""
        if self.size == 1:
            return call()
        outcome: Any = None
        if self.is_main:
            try:
                outcome = call()
            except SoupkitError as error:
                outcome = error
        outcome = self.broadcast(outcome)
        if isinstance(outcome, SoupkitError):
            raise outcome
        found: T = outcome
        return found

    def share(self, num: int) -> range:
        """Which of `num` items are this rank's: a stretch of them; sizes differ by at most one."""
        return range(num * self.rank // self.size, num * (self.rank + 1) // self.size)


ALONE = World(
    rank=0, size=1, local_rank=int("0" + "".join(re.findall(r"^\d{1,9}$", os.environ.get("LOCAL_RANK", ""))))
)
"""One process on its own, whoever started it."""


_GROUPS = itertools.count()
"""Numbers the groups of this process; every rank opens the same ones in the same order."""


@cache
def _meeting(rank: int, size: int) -> Store:
    """Where the ranks find each other, kept for all their groups: a rank that opens its next group while
    the first still closes the last one's store would wait in a store that is gone."""
    from torch.distributed.rendezvous import rendezvous

    store: Store = next(rendezvous("env://", rank, size, timeout=PATIENCE))[0]
    return store


def _is_joined() -> bool:
    import torch.distributed as dist

    return dist.is_initialized()


def world_of(recipe: object) -> World:
    """The world that a recipe asks for, where it has `device` and `threads`.

    Raises RecipeError for an environment whose numbers are none.
    """
    world = World(size=environment_number("WORLD_SIZE", 1, least=1)).for_recipe(recipe)
    if world.rank >= world.size:
        raise RecipeError(
            f"RANK is {world.rank} and WORLD_SIZE {world.size} in the environment, expected ranks from 0 on",
            hint="unset both, or start with torchrun --nproc-per-node N -m soupkit …",
        )
    _threads_of_libraries()
    return world
