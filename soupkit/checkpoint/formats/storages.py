"""The storages that a pickle of torch's asks for, found without importing or running what it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from soupkit.checkpoint.formats.inert import Inert, name_in
from soupkit.errors import CheckpointError

ITEM_BYTES = {
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
"""Bytes of an element in each kind of storage that a pickle can name."""
DTYPES = {
    "Byte": "U8",
    "Char": "I8",
    "Bool": "BOOL",
    "Half": "F16",
    "BFloat16": "BF16",
    "Short": "I16",
    "Float": "F32",
    "Int": "I32",
    "Double": "F64",
    "Long": "I64",
}
"""safetensors names of the kinds that have one."""


@dataclass(frozen=True)
class Storage:
    """What a pickle says of a storage: its key, its kind (`Float`, `BFloat16`), its size."""

    key: str
    kind: str
    num_elements: int

    @property
    def num_bytes(self) -> int:
        return self.num_elements * ITEM_BYTES[self.kind]


class Storages:
    """Collects {key: bytes} of the storages that a pickle asks for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, int] = {}

    def __call__(self, pid: object) -> object:
        """Note one, and give nothing in its place."""
        storage = storage_of(pid, self.path)
        if self.found.setdefault(storage.key, storage.num_bytes) != storage.num_bytes:
            damaged(self.path, f"its pickle gives two sizes to the storage {storage.key!r}")
        return Inert()


def storage_of(pid: object, path: Path) -> Storage:
    """What a pickle's ("storage", class, key, location, number of elements, a view in older files) means.

    Raises CheckpointError.
    """
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
        damaged(path, "its pickle asks for something that is no storage")
    _, kind, key, _, count, *_ = pid
    name = name_in(kind).rpartition(".")[2].removesuffix("Storage")
    if name not in ITEM_BYTES or type(key) is not str or type(count) is not int or count < 0:
        damaged(path, "its pickle describes a storage that torch does not know")
    return Storage(key, name, count)


def damaged(path: Path, what: str) -> NoReturn:
    """Raise CheckpointError for a file of torch.save that is not whole."""
    raise CheckpointError(
        f"{path}: is damaged, or not a file of torch.save: {what}", hint="download it again"
    )
