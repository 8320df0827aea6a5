"""Where a job runs: device and threads. Torch is imported only when a device is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soupkit.errors import RecipeError

if TYPE_CHECKING:
    import torch


def available_cores() -> int:
    """The cores that this process may use (affinity, not what the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Where soupkit keeps what it can compute again."""
    if own := os.environ.get("SOUPKIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soupkit"


@dataclass(frozen=True)
class World:
    """The machine as one job sees it.

    device: "auto", "cpu", "cuda" or "cuda:i"; threads: worker threads of the data plane and of torch on the CPU.
    """

    device: str = "auto"
    threads: int = 0

    @property
    def num_threads(self) -> int:
        """What was asked for, else OMP_NUM_THREADS, as every numerical library reads it, else every core."""
        return self.threads or int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or 0) or available_cores()

    def torch_device(self) -> torch.device:
        """Resolve `device`, once models come in. Raises RecipeError when there is no such device."""
        import torch

        torch.set_num_threads(self.num_threads)
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        kind, _, index = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
            raise RecipeError(f"device {self.device!r} is not known", hint="use auto, cpu, cuda or cuda:0")
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise RecipeError(
                f"device {self.device!r}: this torch sees {torch.cuda.device_count()} CUDA devices",
                hint="use --device cpu, or install a CUDA build of torch",
            )
        return torch.device(self.device)


def world_of(recipe: Any) -> World:
    """The world that a recipe asks for, where it has `device` and `threads`."""
    return World(device=getattr(recipe, "device", "auto"), threads=getattr(recipe, "threads", 0))
