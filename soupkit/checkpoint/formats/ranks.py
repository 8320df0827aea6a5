"""One file of torch.save for each rank, with the rank's part of every tensor: DTensor (FSDP2, verl) or
ShardedTensor (FSDP1).

Both say which part of the whole tensor a file holds; nothing of torch.distributed is unpickled for that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from soupkit.checkpoint.formats.inert import Inert, as_sizes, describe, name_in
from soupkit.checkpoint.formats.places import NOT_WEIGHTS
from soupkit.checkpoint.formats.stored import Stored, read_archive
from soupkit.checkpoint.spread import Piece, Sizes, Spread, fault_of
from soupkit.errors import CheckpointError, ReferenceError, brief

_NAME = re.compile(r"(?P<stem>.*?)(?:world_size_(?P<size>\d+)_)?rank[_-]?(?P<rank>\d+)\.(?:pt|pth|bin)")
_NO_MODEL = ("zero_pp_", "mp_", "extra_state", "rng")
_SAVE = "save with torch.distributed.checkpoint, or gather the state dict in the program that wrote this"


def rank_files(folder: Path) -> list[Path]:
    """The files of a folder that hold one rank's part of a model each, rank by rank; none for any other
    folder.

    Raises ReferenceError where there are several models, or ranks are missing.
    """
    groups: dict[tuple[str, str | None], dict[int, Path]] = {}
    for file in folder.iterdir():
        found = _NAME.fullmatch(file.name)
        if found and not NOT_WEIGHTS.search(found["stem"]) and not found["stem"].startswith(_NO_MODEL):
            groups.setdefault((found["stem"], found["size"]), {})[int(found["rank"])] = file
    if len(groups) > 1:
        stems = ", ".join(sorted(stem for stem, _ in groups))
        raise ReferenceError(f"{folder}: holds rank files of several models: {stems}", hint="move one away")
    for (_, size), files in groups.items():
        missing = [rank for rank in range(int(size) if size else max(files) + 1) if rank not in files]
        if missing:
            raise ReferenceError(
                f"{folder}: lacks the file of rank {missing[0]}", hint="copy the files of all ranks"
            )
        return [files[rank] for rank in sorted(files)]
    return []


def read_ranks(folder: Path) -> Any:
    """The containers of rank 0, with whole tensors in them. Raises CheckpointError for parts that do not fit.

    What every rank holds whole is taken from rank 0. Cost: the pickles are read, not their tensors.
    """
    files = rank_files(folder)
    values = [read_archive(file) for file in files]
    found = _Found(0)
    joined = _join(values, folder.name, files, found)
    if not found.parts and len(files) > 1:
        raise CheckpointError(
            f"{folder}: its {len(files)} files hold plain tensors, which do not say how they fit together",
            hint=_SAVE,
        )
    return joined


class _Found:
    """Counts the tensors that were in parts."""

    def __init__(self, parts: int) -> None:
        self.parts = parts


def _join(values: Sequence[Any], name: str, files: Sequence[Path], found: _Found) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {
            key: _join(
                [each[key] for each in values if isinstance(each, dict) and key in each], key, files, found
            )
            for key in first
        }
    kinds = {_kind(value) for value in values}
    if kinds == {"DTensor"} or kinds == {"ShardedTensor"}:
        found.parts += 1
        read = _dtensor if kinds == {"DTensor"} else _sharded
        return _whole(read(values, name, files[0].parent), name, files[0].parent)
    return first


def _kind(value: Any) -> str:
    """The class of a tensor that says which part of another it is."""
    if isinstance(value, Inert) and name_in(value).endswith("_rebuild_from_type_v2"):
        return name_in(value.arguments[1]).rpartition(".")[2]
    return ""


class _Part(NamedTuple):
    """A part of a tensor, and where in it it begins."""

    tensor: Stored
    offsets: Sizes


class _Parts(NamedTuple):
    """The shape of a tensor, and its parts."""

    shape: Sizes
    parts: list[_Part]


def _whole(found: _Parts, name: str, folder: Path) -> Stored:
    parts = list({part.offsets: part for part in found.parts if 0 not in part.tensor.shape}.values())
    pieces = tuple(
        Piece(offsets, tensor.shape, tensor.spread.pieces[0].file, tensor.spread.pieces[0].locate)
        for tensor, offsets in parts
    )
    fault = fault_of(found.shape, pieces)
    if not fault and len({part.tensor.dtype for part in parts}) > 1:
        fault = "has parts of several dtypes"
    if fault:
        raise _unfit(folder, name, f"of shape {list(found.shape)} {fault}")
    dtype = found.parts[0].tensor.dtype
    return Stored(dtype, found.shape, Spread(found.shape, pieces), (folder, name))


def _sharded(values: Sequence[Inert], name: str, folder: Path) -> _Parts:
    """ShardedTensor's state: (local shards, metadata of all, …)."""
    shape: Sizes | None = None
    parts = []
    for value in values:
        state = value.arguments[3] if len(value.arguments) > 3 else None
        if not isinstance(state, tuple) or len(state) < 2 or not isinstance(state[0], list):
            raise _unfit(folder, name, "is a ShardedTensor that says nothing of its shards")
        shape = as_sizes(_field(state[1], "size"))
        for shard in state[0]:
            tensor, offsets = (
                _field(shard, "tensor"),
                as_sizes(_field(_field(shard, "metadata"), "shard_offsets")),
            )
            if not isinstance(tensor, Stored) or offsets is None or len(offsets) != len(tensor.shape):
                raise _unfit(folder, name, "has a shard without a place")
            parts.append(_Part(tensor, offsets))
    if shape is None or not parts:
        raise _unfit(folder, name, "has no shape or no shards")
    return _Parts(shape, parts)


def _dtensor(values: Sequence[Inert], name: str, folder: Path) -> _Parts:
    """DTensor's state: the local tensor, and a spec with the mesh of ranks and a placement for each of its
    axes."""
    states = [value.arguments[3] if len(value.arguments) > 3 else None for value in values]
    specs = [_field(state, "_spec") for state in states]
    coordinates = [as_sizes(_field(_field(spec, "mesh"), "_coordinate_on_dim")) for spec in specs]
    inside = [each for each in coordinates if each is not None]
    meta = _field(specs[0], "tensor_meta")
    shape = as_sizes(meta.arguments[0]) if isinstance(meta, Inert) and meta.arguments else None
    dims = _shard_dims(specs[0], name, folder)
    if shape is None or not inside or any(len(each) != len(dims) for each in inside):
        raise _unfit(folder, name, "is a DTensor that does not say which rank holds what")
    sizes = [1 + max(axis) for axis in zip(*inside, strict=True)]
    parts = []
    for state, coordinate in zip(states, coordinates, strict=True):
        local = _field(state, "_local_tensor")
        if coordinate is None:
            continue
        offsets, extent = _place(shape, dims, sizes, coordinate)
        if not isinstance(local, Stored) or (local.shape != extent and 0 not in extent):
            held = list(local.shape) if isinstance(local, Stored) else describe(local)
            raise _unfit(folder, name, f"has a part {held} where {list(extent)} was expected")
        parts.append(_Part(local, offsets))
    return _Parts(shape, parts)


def _shard_dims(spec: Any, name: str, folder: Path) -> list[int | None]:
    """For each axis of the mesh the dimension that it cuts, None where every rank holds all."""
    dims: list[int | None] = []
    placements = _field(spec, "placements")
    for each in placements if isinstance(placements, tuple | list) else []:
        kind, dim = describe(each).rpartition(".")[2], _field(each, "dim")
        if kind == "Shard" and type(dim) is int and dim >= 0:
            dims.append(dim)
        elif kind == "Replicate":
            dims.append(None)
        else:
            raise _unfit(folder, name, f"is placed as {brief(kind)}")
    orders = _field(spec, "shard_order")
    for order in orders if isinstance(orders, tuple | list) else []:
        axes = order.arguments[1] if isinstance(order, Inert) and len(order.arguments) > 1 else ()
        if isinstance(axes, tuple) and list(axes) != sorted(axes):
            raise _unfit(folder, name, f"is cut along axes of the mesh in the order {brief(axes)}")
    return dims


def _place(
    shape: Sizes, dims: Sequence[int | None], sizes: Sequence[int], coordinate: Sizes
) -> tuple[Sizes, Sizes]:
    """Where a rank's part begins, and its shape: every axis of the mesh cuts what is left as torch.chunk
    does."""
    offsets, extent = [0] * len(shape), list(shape)
    for dim, size, number in zip(dims, sizes, coordinate, strict=True):
        if dim is not None and dim < len(shape):
            step = -(-extent[dim] // size)
            start = min(extent[dim], step * number)
            offsets[dim], extent[dim] = offsets[dim] + start, min(step, extent[dim] - start)
    return tuple(offsets), tuple(extent)


def _field(value: Any, name: str) -> Any:
    """A field of an inert object, or of the state that torch gives its tensors."""
    if isinstance(value, Inert):
        return value.field(name)
    states = value if isinstance(value, tuple) else (value,)
    return next((each[name] for each in states if isinstance(each, Mapping) and name in each), None)


def _unfit(folder: Path, name: str, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}: tensor {brief(name)} {what}", hint=_SAVE)
