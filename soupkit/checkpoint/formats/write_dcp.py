"""Writing a folder of torch.distributed.checkpoint, with torch's own writer, a tensor at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot

if TYPE_CHECKING:
    import torch


def write_dcp(directory: Path, slots: Mapping[str, Slot], read: Callable[[str], torch.Tensor]) -> None:
    """Write tensors under their names, so that torch.distributed.checkpoint.load fills a model's state dict
    with them, whatever its own sharding.

    Memory: one tensor: each is asked of `read` when its turn comes. Raises OSError.
    """
    import torch
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    class ReadWhenWritten(DefaultSavePlanner):
        """Plans with tensors without contents."""

        def lookup_object(self, index: Any) -> torch.Tensor:
            """The tensor of a name."""
            return read(index.fqn)

    planned = {
        name: torch.empty(slot.shape, dtype=_torch_dtype(slot), device="meta") for name, slot in slots.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of there being one process
        save(
            planned,
            storage_writer=FileSystemWriter(directory),
            planner=ReadWhenWritten(),
            no_dist=True,
        )


def as_torch(values: Array, slot: Slot) -> torch.Tensor:
    """The elements of a tensor in order as one of torch, without a copy."""
    import torch

    bits = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
    return bits.view(_torch_dtype(slot)).reshape(slot.shape)


def _torch_dtype(slot: Slot) -> torch.dtype:
    import torch

    found = getattr(torch, NUMPY_DTYPES[slot.dtype].name)
    assert isinstance(found, torch.dtype)
    return found
