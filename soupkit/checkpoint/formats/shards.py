"""Files that hold a part of a model only: what one process of a sharded training saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from soupkit.checkpoint.formats.places import Shaped
from soupkit.errors import CheckpointError

Empty = Literal["error", "keep"]
ZERO_HINT = (
    "name the folder with the files of all ranks, which soupkit reads as it is; or make a whole checkpoint "
    "with the script beside them: python zero_to_fp32.py FOLDER OUT"
)
_DEEPSPEED = ("ds_version", "ds_config", "param_shapes", "zero_stage")


def refuse_shard(value: object, path: Path) -> None:
    """Raise CheckpointError for a file of DeepSpeed that lacks weights: those of ZeRO-3, and optimizer
    states."""
    if not isinstance(value, Mapping) or not any(key in value for key in _DEEPSPEED):
        return
    if "optimizer_state_dict" in value and not isinstance(value.get("module"), Mapping):
        raise CheckpointError(f"{path}: holds the optimizer states of one rank of DeepSpeed", hint=ZERO_HINT)
    module = value.get("module")
    if not isinstance(module, Mapping):
        return
    sizes = {name: tuple(tensor.shape) for name, tensor in module.items() if hasattr(tensor, "shape")}
    wanted = dict(_param_shapes(value.get("param_shapes")))
    lacking = [name for name, size in sizes.items() if 0 in size and wanted.get(name, (*size, 0)) != size]
    lacking += [
        name for name, shape in wanted.items() if 0 not in sizes.get(name, ()) and sizes.get(name) != shape
    ]
    if lacking:
        raise CheckpointError(
            f"{path}: is one rank's part of a model that DeepSpeed ZeRO-3 has spread out: {len(lacking)} of "
            f"{max(len(sizes), len(wanted))} tensors are not in it, for example {lacking[0]}",
            hint=ZERO_HINT,
        )


def _param_shapes(value: object) -> Iterator[tuple[str, tuple[int, ...]]]:
    """{name: shape} as DeepSpeed notes it: one mapping, or one for each group of parameters."""
    for group in value if isinstance(value, list | tuple) else [value]:
        if isinstance(group, Mapping):
            for name, shape in group.items():
                if isinstance(shape, tuple | list):
                    yield str(name), tuple(shape)


def refuse_empty(tensors: Mapping[str, Shaped], path: Path, empty: Empty) -> None:
    """Raise CheckpointError for tensors that hold nothing and seem to be meant to, unless they are to be
    kept.

    A shape such as [0, 3] may well be what a model has; [0], and a weight or bias of no elements, are what
    sharded training leaves in the place of what another process holds.
    """
    lacking = [
        name for name, tensor in tensors.items() if 0 in tensor.shape and _is_placeholder(name, tensor)
    ]
    if lacking and empty == "error":
        raise CheckpointError(
            f"{path}: {len(lacking)} of {len(tensors)} tensors are empty, for example {lacking[0]}: "
            "one process of a sharded training (DeepSpeed ZeRO-3, FSDP) saves such files",
            hint=f"{ZERO_HINT}; --empty keep takes them as they are",
        )


def _is_placeholder(name: str, tensor: Shaped) -> bool:
    return tuple(tensor.shape) == (0,) or name.rpartition(".")[2] in ("weight", "bias")
