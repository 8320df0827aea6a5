"""Writing tensors: files are planned, created at their final size, and filled at their final offsets."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot, TensorSpec, canonical_order, header_bytes
from soupkit.checkpoint.layout import INDEX_SUFFIX, read_layout
from soupkit.checkpoint.source import slots_of
from soupkit.errors import CheckpointError, RecipeError, brief
from soupkit.jsons import Json

DEFAULT_SHARD_BYTES = 50_000_000_000
_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


@dataclass(frozen=True)
class PlannedFile:
    """One file to write: its name and its tensors in order. prefix: what their names begin with and the file
    leaves out."""

    name: str
    order: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True)
class Plan:
    """All files of a checkpoint to write. indexes: {prefix: the index of the shards of what begins with it}.
    num_bytes counts the tensors' data."""

    slots: Mapping[str, Slot]
    metadata: Mapping[str, str]
    files: tuple[PlannedFile, ...]
    indexes: Mapping[str, str]

    @property
    def num_bytes(self) -> int:
        return sum(slot.num_bytes for slot in self.slots.values())


def parse_bytes(text: str) -> int:
    """'5GB' → 5·10⁹, '8GiB' → 8·2³⁰. Raises RecipeError."""
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    if not match or match[2].upper() not in _UNITS or float(match[1]) <= 0:
        raise RecipeError(f"{brief(text)} is not a size", hint="write 500MB, 5GB or 8GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def plan_files(
    slots: Mapping[str, Slot],
    *,
    file_name: str = "model.safetensors",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    parts: Mapping[str, str] | None = None,
) -> Plan:
    """Decide shards, in canonical order: a new file when a tensor would pass the limit; a larger one stands
    alone.

    parts: {what names begin with: the file for them}, of a pipeline; else all are for `file_name`.
    """
    files: list[PlannedFile] = []
    indexes: dict[str, str] = {}
    for prefix, name in (parts or {"": file_name}).items():
        own = {each: slot for each, slot in slots.items() if each.startswith(prefix)}
        groups = _groups(own, max_shard_bytes)
        stem = name.removesuffix(".safetensors")
        names = [f"{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        if len(groups) == 1:
            names = [name]
        else:
            indexes[prefix] = f"{stem}{INDEX_SUFFIX}"
        files += [PlannedFile(each, tuple(group), prefix) for each, group in zip(names, groups, strict=True)]
    lost = slots.keys() - {name for file in files for name in file.order}
    if lost:
        raise CheckpointError(
            f"tensor {min(lost)!r} is of none of the components {', '.join(parts or ())}",
            hint="merge pipelines of the same components",
        )
    return Plan(slots, {"format": "pt", **(metadata or {})}, tuple(files), indexes)


def _groups(slots: Mapping[str, Slot], max_shard_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name in canonical_order(slots):
        if groups[-1] and size + slots[name].num_bytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += slots[name].num_bytes
    return groups


class TensorFiles:
    """The files of a plan, open for writing at final offsets from any thread: a sink of the merge engine.

    Context manager. Creation reserves the disk, so a full disk is found before the work. On a clean exit the
    files are closed, read back, and their headers must be the declared set (CheckpointError otherwise).
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._directory = directory
        self._plan = plan
        self._places: dict[str, tuple[int, int, int]] = {}
        self._descriptors: list[int] = []

    def __enter__(self) -> TensorFiles:
        for file in self._plan.files:
            prefix, starts = self._header(file)
            (self._directory / file.name).parent.mkdir(exist_ok=True)
            descriptor = os.open(self._directory / file.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            self._descriptors.append(descriptor)
            data = sum(self._plan.slots[name].num_bytes for name in file.order)
            _reserve(descriptor, len(prefix) + data)
            _write_all(descriptor, prefix, 0)
            for name, start in starts.items():
                self._places[name] = (descriptor, start, NUMPY_DTYPES[self._plan.slots[name].dtype].itemsize)
        return self

    def _header(self, file: PlannedFile) -> tuple[bytes, dict[str, int]]:
        """The header of a file, and where in it each tensor starts."""
        inside = {name.removeprefix(file.prefix): self._plan.slots[name] for name in file.order}
        others = [each.prefix for each in self._plan.files if each.prefix != file.prefix]
        metadata = {
            key.removeprefix(file.prefix): value.removeprefix(file.prefix)
            for key, value in self._plan.metadata.items()
            if not key.startswith(tuple(others))
        }
        prefix, starts = header_bytes(inside, list(inside), metadata)
        return prefix, {file.prefix + name: start for name, start in starts.items()}

    def write(self, name: str, start: int, values: Array) -> None:
        """Write the elements of tensor `name` from number `start` on."""
        descriptor, position, itemsize = self._places[name]
        _write_all(descriptor, values.view(np.uint8).data, position + start * itemsize)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = [problem for descriptor in self._descriptors if (problem := _close(descriptor))]
        if error is None:
            if failed:  # what the system took in an earlier write may never have reached the disk
                raise failed[0]
            for prefix, index in self._plan.indexes.items():
                self._write_index(prefix, index)
            self._check()

    def _write_index(self, prefix: str, index_name: str) -> None:
        files = [file for file in self._plan.files if file.prefix == prefix]
        weight_map = {
            name.removeprefix(prefix): Path(file.name).name for file in files for name in file.order
        }
        size = sum(self._plan.slots[name].num_bytes for file in files for name in file.order)
        index: Json = {
            "metadata": {"total_size": size},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (self._directory / index_name).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _check(self) -> None:
        """Read the headers back: what was declared must be what is there."""
        first = {file.prefix: file.name for file in reversed(self._plan.files)} | dict(self._plan.indexes)
        written = {
            prefix + name: Slot(spec.dtype, spec.shape)
            for prefix, file in first.items()
            for name, spec in read_layout(self._directory / file).specs.items()
        }
        if written != dict(self._plan.slots):
            raise CheckpointError(f"{self._directory}: the written headers are not the declared tensors")


def write_tensors(
    directory: Path,
    tensors: Mapping[str, Array],
    *,
    file_name: str = "model.safetensors",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays that are in memory as one checkpoint file into `directory` (an OutputDirectory's)."""
    plan = plan_files(slots_of(tensors), file_name=file_name, metadata=metadata)
    with TensorFiles(directory, plan) as files:
        for name in plan.slots:
            files.write(name, 0, np.ascontiguousarray(tensors[name]).reshape(-1))


def overwrite_values(specs: Mapping[str, TensorSpec], tensors: Mapping[str, Array]) -> None:
    """Put other values in the place of written tensors; who holds their files open must open them again."""
    for name, values in tensors.items():
        spec = specs[name]
        descriptor = os.open(spec.file, os.O_WRONLY)
        try:
            _write_all(descriptor, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, spec.start)
        finally:
            os.close(descriptor)


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Give the file its size and its disk now; file systems that cannot reserve only get the size."""
    os.ftruncate(descriptor, num_bytes)
    if hasattr(os, "posix_fallocate") and num_bytes:
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def _close(descriptor: int) -> OSError | None:
    try:
        os.close(descriptor)
    except OSError as error:
        return error
    return None


def _write_all(descriptor: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    done = os.pwrite(descriptor, view, position)
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], position + done)
