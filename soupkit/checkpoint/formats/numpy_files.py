"""Arrays of numpy: archives (.npz, as big_vision and flax write them) and pickles (.pkl, as detectron2
does)."""

from __future__ import annotations

import math
import mmap
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array, safetensors_name
from soupkit.checkpoint.formats.archive import data_start
from soupkit.checkpoint.formats.inert import Inert, as_sizes, name_in, read_inert
from soupkit.checkpoint.formats.stored import Stored, whole
from soupkit.checkpoint.spread import Extent, Place, Sizes
from soupkit.errors import CheckpointError
from soupkit.jsons import Json

NPZ, PICKLES = ".npz", (".pkl", ".pickle")
_PARAMS = "params/"
_BULK = 1 << 10
"""Bytes from which a text or a byte string of a pickle stays in the file."""
_IN_FILE = {"BINBYTES": 5, "BINBYTES8": 9, "BYTEARRAY8": 9, "BINUNICODE": 5, "BINUNICODE8": 9}
"""What begins them: an opcode, and four or eight bytes of their length."""
_AGAIN = "download or save it again; it is damaged"


def is_npz(path: Path) -> bool:
    """Whether this is an archive of numpy."""
    return path.suffix.lower() == NPZ and path.is_file() and zipfile.is_zipfile(path)


def is_array_pickle(path: Path) -> bool:
    """Whether this is a pickle, by its name and how those since protocol 2 begin."""
    if path.suffix.lower() not in PICKLES or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


class _Kind(NamedTuple):
    """What a header or a pickle says of an array."""

    dtype: np.dtype[Any]
    shape: Sizes
    by_columns: bool

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path) -> Json:
    """The arrays of an archive by name; of one with `params/…` those alone, as big_vision stores optimizers
    beside them.

    bfloat16, which numpy writes as two bytes without a meaning, is read as such. Raises CheckpointError, also
    for arrays of Python objects. Memory: none where arrays are stored as they are; those of a compressed
    archive are held once they were read.
    """
    with _damage_of(path), path.open("rb") as file, zipfile.ZipFile(file) as opened:
        arrays = {
            info.filename.removesuffix(".npy"): _member(path, info, file, opened)
            for info in opened.infolist()
            if not info.is_dir()
        }
    params = {name.removeprefix(_PARAMS): each for name, each in arrays.items() if name.startswith(_PARAMS)}
    return params or dict(arrays)


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Say of what goes wrong in an archive that it is damaged: its readers fail in every way there is."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", hint=_AGAIN) from None


def _member(path: Path, info: zipfile.ZipInfo, file: BinaryIO, opened: zipfile.ZipFile) -> Stored:
    with opened.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{info.filename} is of version {version} of the format")
        shape, by_columns, dtype = read[version](member)
        header = member.tell()
    kind = _Kind(dtype, tuple(shape), by_columns)
    if dtype.hasobject or header + kind.num_bytes != info.file_size:
        raise ValueError(f"{info.filename} does not hold numbers of {dtype} {list(shape)}")
    if info.compress_type == zipfile.ZIP_STORED:
        start = data_start(path, info, file) + header
        return _array(path, kind, partial(_placed, path, start, kind), info.filename)
    return _array(path, kind, partial(_inflated, path, info.filename, header, kind), info.filename)


def _inflated(path: Path, name: str, header: int, kind: _Kind) -> Array:
    with _damage_of(path), zipfile.ZipFile(path) as opened, opened.open(name) as member:
        return _shaped(np.frombuffer(member.read()[header:], np.uint8), kind)


def _array(path: Path, kind: _Kind, locate: Any, origin: str) -> Stored:
    return whole(_name(kind.dtype), kind.shape, path, locate, (path, origin))


def _name(dtype: np.dtype[Any]) -> str:
    """safetensors' name, or numpy's where that has none; two bytes without a meaning are bfloat16."""
    if dtype == np.dtype("V2"):
        return "BF16"
    try:
        return safetensors_name(dtype)
    except CheckpointError:
        return str(dtype)


def _placed(path: Path, start: int, kind: _Kind) -> Place:
    if not kind.by_columns or len(kind.shape) < 2:
        return Extent(path, start)
    return _shaped(np.memmap(path, np.uint8, "r", start, (kind.num_bytes,)), kind)


def _shaped(data: Array, kind: _Kind) -> Array:
    values = data.view(NUMPY_DTYPES[_name(kind.dtype)])
    return values.reshape(kind.shape, order="F" if kind.by_columns else "C")


# Pickles


class _Bulk(NamedTuple):
    """A byte string that stays in the file; is_text: written as text, a byte as the letter of that number."""

    start: int
    length: int
    is_text: bool


class _Encoded(Inert):
    """_codecs.encode(text, "latin1"): how bytes were pickled before protocol 3."""

    def __new__(cls, *arguments: Any, **_named: object) -> Any:
        text = arguments[0]
        return text.encode("latin-1") if isinstance(text, str) else text


class _Nothing(Inert):
    """bytes(), before protocol 3."""

    def __new__(cls, *_arguments: Any, **_named: object) -> Any:
        return b""


def read_array_pickle(path: Path) -> Any:
    """The containers of a pickle with its arrays, which stay in the file. Raises CheckpointError.

    Memory: the longest array, while its place is looked for; arrays that protocol 2 wrote as text are held
    once they were read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            short = b"".join(_without_bulk(content))
    except (OSError, ValueError, OverflowError, UnicodeError) as error:
        raise CheckpointError(f"{path}: its pickle cannot be followed: {error}", hint=_AGAIN) from None
    value = read_inert(
        short, path, known={"_codecs.encode": _Encoded, "__builtin__.bytes": _Nothing}, storage=_bulk
    )
    return _with_arrays(value, path)


def _without_bulk(content: mmap.mmap) -> Iterator[bytes]:
    """A pickle without its long byte strings: in the place of each stands where it is."""
    ops = [(op.name, position or 0) for op, _, position in pickletools.genops(cast(IO[bytes], content))]
    for (name, start), (_, stop) in zip(ops, [*ops[1:], ("", len(content))], strict=True):
        if name in _IN_FILE and stop - start >= _BULK:
            begin = start + _IN_FILE[name]
            token = f"{begin}:{stop - begin}:{int('UNICODE' in name)}".encode()
            yield b"X" + len(token).to_bytes(4, "little") + token + b"Q"
        elif name != "FRAME":
            yield content[start:stop]


def _bulk(pid: object) -> _Bulk:
    begin, length, is_text = map(int, str(pid).split(":"))
    return _Bulk(begin, length, bool(is_text))


def _with_arrays(value: Any, path: Path) -> Any:
    """The containers with a `Stored` for every array in mappings."""
    if isinstance(value, dict):
        return {key: _with_arrays(each, path) for key, each in value.items()}
    name = name_in(value).rpartition(".")[2]
    if isinstance(value, Inert) and name == "_reconstruct" and isinstance(value.state, tuple):
        _, shape, dtype, by_columns, data = (*value.state, *(None,) * 5)[:5]
        return _pickled(path, dtype, shape, bool(by_columns), data)
    if isinstance(value, Inert) and name == "_frombuffer":
        data, dtype, shape, order = (*value.arguments, *(None,) * 4)[:4]
        return _pickled(path, dtype, shape, order == "F", data)
    return value


def _pickled(path: Path, dtype: Any, shape: Any, by_columns: bool, data: Any) -> Stored:
    sizes = as_sizes(shape)
    text = dtype.arguments[0] if isinstance(dtype, Inert) and dtype.arguments else ""
    state = dtype.state if isinstance(dtype, Inert) and isinstance(dtype.state, tuple) else ()
    try:
        found = np.dtype(text).newbyteorder(state[1] if len(state) > 1 else "=")
    except (TypeError, ValueError):
        found = np.dtype(object)
    if sizes is None or found.hasobject or not isinstance(data, bytes | bytearray | _Bulk):
        raise CheckpointError(
            f"{path}: holds an array of {text or 'objects'}, not of numbers", hint="save arrays of numbers"
        )
    kind = _Kind(found, sizes, by_columns)
    length = data.length if isinstance(data, _Bulk) else len(data)
    if length != kind.num_bytes and not (isinstance(data, _Bulk) and data.is_text):
        raise CheckpointError(f"{path}: an array of {found} {list(sizes)} has {length} bytes", hint=_AGAIN)
    if not isinstance(data, _Bulk):
        small = np.frombuffer(bytes(data), np.uint8)
        return whole(_name(found), sizes, path, lambda: _shaped(small, kind), (path, id(small)))
    if data.is_text:
        return whole(_name(found), sizes, path, partial(_from_text, path, data, kind), (path, data.start))
    return whole(_name(found), sizes, path, partial(_placed, path, data.start, kind), (path, data.start))


def _from_text(path: Path, data: _Bulk, kind: _Kind) -> Array:
    with _damage_of(path), path.open("rb") as file:
        file.seek(data.start)
        content = file.read(data.length).decode("utf-8").encode("latin-1")
    if len(content) != kind.num_bytes:
        raise CheckpointError(f"{path}: an array has {len(content)} of {kind.num_bytes} bytes", hint=_AGAIN)
    return _shaped(np.frombuffer(content, np.uint8), kind)
