"""torch.distributed.checkpoint (DCP): what FSDP, torchtitan, Lightning, NeMo and Megatron's torch_dist write.

A folder holds `.metadata`, a pickle that names every tensor, its chunks and where each chunk lies, and the
files `__RANK_NUMBER.distcp`, in which every chunk is an archive of torch.save (torch 2.13,
torch/distributed/checkpoint/metadata.py and filesystem.py). Nothing of it is unpickled into objects of torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from soupkit.checkpoint.dtypes import NUMPY_DTYPES
from soupkit.checkpoint.formats.inert import (
    as_key,
    as_sizes,
    describe,
    field_of,
    name_in,
    read_inert,
)
from soupkit.checkpoint.formats.places import NOT_WEIGHTS
from soupkit.checkpoint.formats.stored import TORCH_DTYPES, Stored, read_archive
from soupkit.checkpoint.header import MOST_DIMENSIONS, Slot
from soupkit.checkpoint.spread import Piece, Place, Sizes, Spread, fault_of
from soupkit.errors import CheckpointError, brief
from soupkit.jsons import Json

METADATA = ".metadata"
MAX_METADATA_BYTES = 1_000_000_000
"""A chunk takes about 200 bytes; 5 million of them are 1,000 tensors of 5,000 processes."""
_AGAIN = "save it again; it is damaged, or of a version of torch that soupkit does not know"


class _Item(NamedTuple):
    """Where an archive lies in a file."""

    file: Path
    start: int
    length: int


def read_dcp(directory: Path) -> Json:
    """The tensors of a folder in the containers that they were saved in.

    Values that are no tensors are left out. Raises CheckpointError for a `.metadata` that cannot be followed,
    for chunks that are missing, overlap or lie outside of their tensors, and for files that are missing or
    too short. Cost: `.metadata` is read; a chunk's archive is looked into when the chunk is first read.
    """
    path = directory / METADATA
    metadata = read_inert(_content(path), path)
    items = _items(field_of(metadata, "Metadata", "storage_data", path), path)
    described = _mapping(field_of(metadata, "Metadata", "state_dict_metadata", path), path)
    tensors = {
        name: _tensor(name, value, items, path)
        for name, value in described.items()
        if name_in(value).endswith(".TensorStorageMetadata")
    }
    return _nested(tensors, field_of(metadata, "Metadata", "planner_data", path))


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise CheckpointError(f"{path}: has more than {MAX_METADATA_BYTES:,} bytes", hint=_AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _mapping(value: object, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CheckpointError(f"{path}: names no tensors: it holds {describe(value)}", hint=_AGAIN)
    return value


def _items(storage: object, path: Path) -> dict[tuple[str, Hashable], _Item]:
    """{(name, offset): where its archive is}; all files must be there and long enough."""
    if not isinstance(storage, dict):
        raise CheckpointError(
            f"{path}: does not say where its tensors lie: it holds {describe(storage)}",
            hint="soupkit reads what torch.distributed.checkpoint.FileSystemWriter writes",
        )
    items: dict[tuple[str, Hashable], _Item] = {}
    sizes: dict[Path, int] = {}
    for index, info in storage.items():
        name = field_of(index, "MetadataIndex", "fqn", path)
        offset = field_of(index, "MetadataIndex", "offset", path)
        item = _item(info, path)
        if not isinstance(name, str) or not isinstance(offset, tuple | None):
            raise CheckpointError(f"{path}: places a tensor without a name or an offset", hint=_AGAIN)
        if item.start + item.length > _size_of(item.file, sizes, path):
            raise CheckpointError(
                f"{item.file}: ends before {brief(name)}, of which it holds bytes {item.start:,} to "
                f"{item.start + item.length:,}",
                hint="copy it again; it is cut off",
            )
        items[name, as_sizes(offset)] = item
    return items


def _item(info: object, path: Path) -> _Item:
    name, start, length, transforms = (
        field_of(info, "_StorageInfo", key, path)
        for key in ("relative_path", "offset", "length", "transform_descriptors")
    )
    if not isinstance(name, str) or not _stays_inside(name) or as_sizes((start, length)) is None:
        raise CheckpointError(
            f"{path}: puts a tensor into {brief(name)}, which is no file beside it", hint=_AGAIN
        )
    if transforms:
        raise CheckpointError(
            f"{path}: its tensors went through {brief(transforms)} when they were written",
            hint="save it without extensions of the storage writer",
        )
    return _Item(path.parent / name, start, length)


def _stays_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/") and not {"\\", "\0"} & set(name)


def _size_of(file: Path, sizes: dict[Path, int], path: Path) -> int:
    if file not in sizes:
        try:
            sizes[file] = file.stat().st_size
        except OSError:
            raise CheckpointError(
                f"{path}: names {file.name}, which is not there",
                hint="copy the whole folder: each process of the training wrote files of its own",
            ) from None
    return sizes[file]


def _tensor(name: str, value: Any, items: Mapping[tuple[str, Hashable], _Item], path: Path) -> Stored:
    """A tensor out of its chunks."""
    size = as_sizes(value.field("size"))
    kind = name_in(_properties(value, path)[0])
    dtype = TORCH_DTYPES.get(kind, kind.removeprefix("torch."))
    if size is None or len(size) > MOST_DIMENSIONS or not kind:
        raise CheckpointError(f"{path}: tensor {brief(name)} has no shape or no dtype", hint=_AGAIN)
    pieces = []
    for offsets, sizes in dict.fromkeys(_chunks(name, value, path)):
        item = items.get((name, offsets)) or items.get((name, None))
        if item is None:
            raise CheckpointError(
                f"{path}: does not say where the part of {brief(name)} at {list(offsets)} lies", hint=_AGAIN
            )
        if dtype in NUMPY_DTYPES and Slot(dtype, sizes).num_bytes > item.length:
            raise CheckpointError(
                f"{path}: gives {item.length:,} bytes to a part {list(sizes)} of {brief(name)} ({dtype})",
                hint=_AGAIN,
            )
        pieces.append(Piece(offsets, sizes, item.file, partial(_locate, item, name, dtype, sizes)))
    if fault := fault_of(size, pieces):
        raise CheckpointError(
            f"{path}: tensor {brief(name)} of shape {list(size)} {fault}",
            hint="a process of the training did not save its part",
        )
    return Stored(dtype, size, Spread(size, tuple(pieces)), name)


def _properties(value: Any, path: Path) -> tuple[Any, ...]:
    """The state of TensorProperties: a tuple that begins with the dtype."""
    properties = value.field("properties")
    state = getattr(properties, "state", None)
    if isinstance(state, dict):
        state = (state.get("dtype"),)
    if not isinstance(state, tuple) or not state:
        raise CheckpointError(f"{path}: says nothing of a tensor's dtype", hint=_AGAIN)
    return state


def _chunks(name: str, value: Any, path: Path) -> Iterator[tuple[Sizes, Sizes]]:
    chunks = value.field("chunks")
    for chunk in chunks if isinstance(chunks, list | tuple) else [chunks]:
        offsets, sizes = (
            as_sizes(field_of(chunk, "ChunkStorageMetadata", key, path)) for key in ("offsets", "sizes")
        )
        if offsets is None or sizes is None:
            raise CheckpointError(
                f"{path}: tensor {brief(name)} has a part of no possible place", hint=_AGAIN
            )
        yield offsets, sizes


def _locate(item: _Item, name: str, dtype: str, sizes: Sizes) -> Place:
    """Look into a chunk's archive: where its numbers lie. Raises CheckpointError when it holds another
    tensor."""
    tensor = read_archive(item.file, start=item.start, length=item.length)
    if not isinstance(tensor, Stored) or (tensor.dtype, tensor.shape) != (dtype, sizes):
        held = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Stored) else describe(tensor)
        raise CheckpointError(
            f"{item.file}: holds {held} at byte {item.start:,}, where {dtype} {list(sizes)} of {brief(name)} "
            f"was expected",
            hint=_AGAIN,
        )
    return tensor.spread.pieces[0].place


def _nested(tensors: Mapping[str, Stored], paths: object) -> Json:
    """The containers that were saved, by the keys that the planner noted; else by what names begin with."""
    known = paths if isinstance(paths, dict) else {}
    value: Json = {}
    for name, tensor in tensors.items():
        keys = as_key(known.get(name)) or (name,)
        if len(keys) == 1:
            keys = _without_paths(name)
        inner = value
        for key in keys[:-1]:
            inner = inner.setdefault(str(key), {})
            if not isinstance(inner, dict):
                return dict(tensors)
        inner[str(keys[-1])] = tensor
    if any(
        isinstance(each, Stored) for each in value.values()
    ):  # a model among other things, as torchtitan's
        return {name: each for name, each in value.items() if not _is_beside(name, each)}
    return value


def _is_beside(name: str, value: object) -> bool:
    return isinstance(value, dict) and NOT_WEIGHTS.search(name.lower()) is not None


def _without_paths(name: str) -> tuple[str, ...]:
    first, _, rest = name.partition(".")
    return (first, rest) if rest and first.lower() in ("optim", "optimizer", "optimizers") else (name,)
