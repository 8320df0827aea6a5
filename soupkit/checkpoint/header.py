"""The header of a safetensors file, read and written with nothing taken on trust.

A file is: 8 bytes little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}, "__metadata__": {str:
str}}, then the data, which the offsets cover without gaps or overlaps.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES
from soupkit.errors import CheckpointError, brief
from soupkit.jsons import Json

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_LIMIT = 2**63
MOST_DIMENSIONS = 32 if np.lib.NumpyVersion(np.__version__) < "2.0.0" else 64
"""numpy's own limit, which the format lacks."""


class TensorSpec(NamedTuple):
    """What a header says of a tensor; `start` counts bytes from the beginning of `file`."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * NUMPY_DTYPES[self.dtype].itemsize


Identity = tuple[int, int, int, int]


@dataclass(frozen=True)
class Header:
    """Tensors of one file, in the order of their data, and its metadata; which file it was, when it is on
    this disk."""

    specs: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    identity: Identity | None = None


def read_header(path: Path) -> Header:
    """Read and check the header of one file. Raises CheckpointError naming the file and what is wrong with
    it."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            header = parse_header(file.read(header_length(file.read(8), path, size)), path, size)
            return replace(header, identity=identity_of(status))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def check_regular(path: Path) -> None:
    """Raise CheckpointError for what is there and is no file: a pipe, which is waited for without end, a
    device."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path}: is no regular file", hint="put the file itself there")


def identity_of(status: os.stat_result) -> Identity:
    """What tells a file from another that took its place."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def header_length(prefix: bytes, path: Path, file_size: int) -> int:
    """The bytes of the JSON that follows the first eight, `prefix`. Raises CheckpointError when that cannot
    be."""
    if prefix == b"version ":
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the file itself", hint="fetch the file: git lfs pull"
        )
    if len(prefix) < 8:
        _damaged(path, f"is {file_size} bytes long, too short for a safetensors file")
    length: int = struct.unpack("<Q", prefix)[0]
    if length > MAX_HEADER_BYTES:
        _damaged(path, f"declares a header of {length} bytes, the format allows {MAX_HEADER_BYTES}")
    if 8 + length > file_size:
        _damaged(path, f"declares a header of {length} bytes in a file of {file_size}")
    return length


def parse_header(raw: bytes, path: Path, file_size: int) -> Header:
    """Check a header's JSON against the size of its file. Raises CheckpointError."""
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
        if b"-0" in raw or b"\\u" in raw:
            _check_as_safetensors_does(raw, entries)
    except (ValueError, RecursionError) as error:
        _damaged(path, f"has a header that is not valid: {error}")
    if not isinstance(entries, dict):
        _damaged(path, "has a header that is not a JSON object")
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    data_start = 8 + len(raw)
    spans = [(_span(name, entry, path), name, entry) for name, entry in entries.items()]
    spans.sort(key=lambda item: (item[0], item[1]))
    _check_coverage(spans, path, file_size - data_start)
    specs = {
        name: TensorSpec(entry["dtype"], tuple(entry["shape"]), path, data_start + start)
        for (start, _), name, entry in spans
    }
    return Header(specs, metadata)


def _check_as_safetensors_does(raw: bytes, entries: object) -> None:
    """Raise ValueError for what Python's JSON takes and safetensors refuses: -0, and half a surrogate
    pair."""
    json.loads(raw, parse_int=_without_minus_zero)
    json.dumps(entries, ensure_ascii=False).encode()


def _without_minus_zero(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is not a size or position")
    return int(text)


def _without_duplicates(pairs: list[tuple[str, object]]) -> Json:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {brief(twice)} stands twice")
    return entries


def _metadata(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _damaged(path, "has a __metadata__ that is not a map from text to text")
    return dict(value)


def _span(name: str, entry: object, path: Path) -> tuple[int, int]:
    """The (start, stop) of a tensor after its own entry has been checked."""
    if type(entry) is not dict or entry.keys() != _ENTRY_KEYS:
        _damaged(path, f"tensor {brief(name)}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in NUMPY_DTYPES:
        _damaged(path, f"tensor {brief(name)}: dtype {brief(dtype)} is not one of {', '.join(NUMPY_DTYPES)}")
    if not _are_counts(shape):
        _damaged(path, f"tensor {brief(name)}: shape {brief(shape)} is not a list of sizes")
    if not _are_counts(offsets) or len(offsets) != 2:
        _damaged(path, f"tensor {brief(name)}: data_offsets {brief(offsets)} are not two positions")
    start: int = offsets[0]
    stop: int = offsets[1]
    expected = _size_of(shape, NUMPY_DTYPES[dtype].itemsize)
    if expected is None:
        _damaged(
            path, f"tensor {brief(name)}: no array is of the shape {brief(shape)} ({len(shape)} dimensions)"
        )
    if stop - start != expected:
        _damaged(
            path,
            f"tensor {brief(name)}: {dtype} {shape} takes {expected} bytes, its offsets span {stop - start}",
        )
    return start, stop


def _size_of(shape: list[int], itemsize: int) -> int | None:
    """The bytes of an array; None for what numpy cannot make: too many dimensions, or too large but for a
    zero."""
    if len(shape) > MOST_DIMENSIONS:
        return None
    num_bytes = itemsize
    for size in shape:
        num_bytes *= size or 1
        if num_bytes >= _LIMIT:
            return None
    return 0 if 0 in shape else num_bytes


def _are_counts(values: object) -> bool:
    """Whether this is a list of integers from 0 to 2⁶³ − 1; a loop, since headers may hold 100,000 of
    them."""
    if type(values) is not list:
        return False
    for value in values:  # noqa: SIM110
        if type(value) is not int or not 0 <= value < _LIMIT:
            return False
    return True


def _check_coverage(spans: list[tuple[tuple[int, int], str, object]], path: Path, data_size: int) -> None:
    """The offsets must cover the data exactly: no gap, no overlap, nothing missing at the end."""
    position = 0
    for (start, stop), name, _ in spans:
        if start < position:
            _damaged(
                path,
                f"tensor {brief(name)} overlaps the one before it (starts at {start}, expected {position})",
            )
        if start > position:
            _damaged(path, f"{start - position} bytes before tensor {brief(name)} belong to no tensor")
        position = stop
    if position > data_size:
        _damaged(
            path, f"is truncated: the header promises {position} bytes of data, the file holds {data_size}"
        )
    if position < data_size:
        _damaged(path, f"has {data_size - position} bytes after the last tensor")


def _damaged(path: Path, what: str) -> NoReturn:
    raise CheckpointError(
        f"{path}: {what}", hint="download or save the file again; it is damaged or not safetensors"
    )


class Slot(NamedTuple):
    """A tensor to be written: its safetensors dtype and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * NUMPY_DTYPES[self.dtype].itemsize


def canonical_order(slots: Mapping[str, Slot]) -> list[str]:
    """Wider dtypes first (which aligns every tensor), then by name: what safetensors itself writes."""
    return sorted(
        slots, key=lambda name: (-NUMPY_DTYPES[slots[name].dtype].itemsize, slots[name].dtype, name)
    )


def header_bytes(
    slots: Mapping[str, Slot], order: list[str], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The prefix and header of a file, and where in the file each tensor starts."""
    entries: Json = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position, starts = 0, {}
    for name in order:
        slot = slots[name]
        starts[name] = position
        stop = position + slot.num_bytes
        entries[name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [position, stop]}
        position = stop
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    prefix = struct.pack("<Q", len(raw)) + raw
    return prefix, {name: start + len(prefix) for name, start in starts.items()}
