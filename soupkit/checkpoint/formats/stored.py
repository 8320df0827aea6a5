"""Tensors that stay on disk: what a pickle of torch.save says of them, and where in the file their numbers
lie."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.formats.archive import read_records
from soupkit.checkpoint.formats.inert import Inert, as_sizes, name_in, read_inert
from soupkit.checkpoint.formats.storages import DTYPES, ITEM_BYTES, storage_of
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.spread import Extent, Piece, Place, Sizes, Spread
from soupkit.errors import CheckpointError

TORCH_DTYPES = {f"torch.{dtype.name}": name for name, dtype in NUMPY_DTYPES.items()}
"""torch.float32 → F32."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor on disk.

    dtype: safetensors' name, or another's where that has none. origin: what tensors that share their bytes
    have in common.
    """

    dtype: str
    shape: Sizes
    spread: Spread
    origin: Hashable

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element of a dtype that has a safetensors name."""
        return NUMPY_DTYPES[self.dtype].itemsize


def stored_slot(name: str, tensor: Stored) -> Slot:
    """The dtype and shape of a tensor that can be written. Raises CheckpointError for any other."""
    if tensor.dtype not in NUMPY_DTYPES:
        raise CheckpointError(
            f"tensor {name!r} is {tensor.dtype}, which a safetensors file that soupkit writes cannot hold",
            hint=f"supported: dense tensors of {', '.join(TORCH_DTYPES)}",
        )
    return Slot(tensor.dtype, tensor.shape)


def whole(dtype: str, shape: Sizes, file: Path, locate: Callable[[], Place], origin: Hashable) -> Stored:
    """A tensor that lies in one piece of a file."""
    return Stored(dtype, shape, Spread(shape, (Piece((0,) * len(shape), shape, file, locate),)), origin)


def in_float32(tensor: Stored) -> Stored:
    """A tensor read as float32: small ones, since it is held once it was read."""
    if tensor.dtype == "F32":
        return tensor
    file = tensor.spread.pieces[0].file

    def widened() -> Array:
        values = np.empty(tensor.num_elements, NUMPY_DTYPES[tensor.dtype])
        tensor.spread.read_into(0, values, _read)
        return values.reshape(tensor.shape).astype(np.float32)

    return whole("F32", tensor.shape, file, widened, (tensor.origin, "F32"))


def _read(file: Path, position: int, out: Array) -> None:
    with file.open("rb") as opened:
        opened.seek(position)
        if opened.readinto(out.view(np.uint8).data) != out.nbytes:
            raise CheckpointError(f"{file}: ended while it was read", hint="copy it again")


def read_archive(path: Path, *, start: int = 0, length: int | None = None) -> Any:
    """What torch.save wrote into a file, or into a part of one, with a `Stored` for every tensor.

    Raises CheckpointError for an archive that is damaged. Memory: its data.pkl.
    """
    try:
        with path.open("rb") as file:
            window = file if length is None else io.BufferedReader(_Window(file, start, length))
            records = read_records(path, window)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    places = {name: (start + at, size) for name, (at, size) in records.places.items()}
    return read_inert(
        records.pickled, path, known=_KNOWN, storage=partial(_located, path=path, places=places)
    )


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if self._at < 0:
            raise ValueError("before the beginning")
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._at)]
        self._file.seek(self._start + self._at)
        read = self._file.readinto(view)  # type: ignore[attr-defined]
        self._at += read
        return int(read)


@dataclass(frozen=True)
class _Located:
    """A storage, and where it lies."""

    path: Path
    start: int
    kind: str
    num_bytes: int


def _located(pid: object, *, path: Path, places: Mapping[str, tuple[int, int]]) -> _Located:
    storage = storage_of(pid, path)
    record = f"data/{storage.key}"
    start, size = places.get(record, (0, -1))
    if size != storage.num_bytes:
        held = "is missing" if size < 0 else f"has {size} bytes, its tensor needs {storage.num_bytes}"
        raise _damaged(path, f"the record {record!r} {held}")
    return _Located(path, start, storage.kind, storage.num_bytes)


class _Tensor(Inert):
    """_rebuild_tensor_v2(storage, offset, size, stride, …)."""

    def __new__(cls, *arguments: Any, **_named: object) -> Any:
        return _tensor(arguments, None)


class _TypedTensor(Inert):
    """_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, …): of dtypes that have
    no kind of storage."""

    def __new__(cls, *arguments: Any, **_named: object) -> Any:
        return _tensor(arguments, name_in(arguments[6]) if len(arguments) > 6 else "")


class _First(Inert):
    """_rebuild_parameter(tensor, …)."""

    def __new__(cls, *arguments: Any, **_named: object) -> Any:
        return arguments[0]


class _Typed(Inert):
    """_rebuild_from_type_v2(function, type, arguments, state): a tensor with attributes, or of another
    kind."""

    of = "torch._tensor._rebuild_from_type_v2"

    def __new__(cls, *arguments: Any, **named: object) -> Any:
        function, _, inner, *_ = arguments
        if isinstance(function, type) and issubclass(function, _Tensor | _TypedTensor | _First):
            return function(*inner)
        return super().__new__(cls, *arguments, **named)


_KNOWN: Mapping[str, type] = {
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_tensor_v3": _TypedTensor,
    "torch._utils._rebuild_parameter": _First,
    "torch._utils._rebuild_parameter_with_state": _First,
    "torch._tensor._rebuild_from_type_v2": _Typed,
}


def _tensor(arguments: Sequence[Any], kind: str | None) -> Stored:
    """A tensor out of what torch's function for it is given."""
    storage, offset = arguments[:2]
    sizes, strides = as_sizes(arguments[2]), as_sizes(arguments[3])
    if not isinstance(storage, _Located):
        raise ValueError("a tensor without a storage")
    if (
        type(offset) is not int
        or offset < 0
        or sizes is None
        or strides is None
        or len(sizes) != len(strides)
    ):
        raise _damaged(storage.path, "a tensor of no possible shape")
    dtype = DTYPES.get(storage.kind, storage.kind) if kind is None else TORCH_DTYPES.get(kind, kind)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    known = dtype in NUMPY_DTYPES
    itemsize = NUMPY_DTYPES[dtype].itemsize if known else ITEM_BYTES[storage.kind]
    if 0 not in sizes and (last + 1) * itemsize > storage.num_bytes:
        raise _damaged(storage.path, f"a tensor of shape {list(sizes)} reaches beyond its storage")
    extent = Extent(storage.path, storage.start + offset * itemsize)
    in_rows = not known or 0 in sizes or _is_row_major(sizes, strides)
    locate = partial(_strided, extent, last - offset + 1, dtype, sizes, strides)
    return whole(dtype, sizes, storage.path, (lambda: extent) if in_rows else locate, (extent, strides))


def _is_row_major(sizes: Sizes, strides: Sizes) -> bool:
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _strided(extent: Extent, count: int, dtype: str, sizes: Sizes, strides: Sizes) -> Array:
    """A tensor in another order than row by row, mapped: it is read where it is touched."""
    kind = NUMPY_DTYPES[dtype]
    flat = np.memmap(extent.file, np.uint8, "r", extent.start, (count * kind.itemsize,)).view(kind)
    return np.lib.stride_tricks.as_strided(
        flat, sizes, [stride * kind.itemsize for stride in strides], writeable=False
    )


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: is damaged, or not a file of torch.save: {what}", hint="download or save it again"
    )
