"""The storages that a pickle of torch's asks for, found without importing or running what it names."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

from soupkit.errors import CheckpointError

_ITEM_BYTES = {
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
"""Bytes of an element in each kind of storage that a pickle can name."""


class Inert:
    """What every name in a pickle stands for while only its storages are looked for: nothing happens to
    it."""

    def __new__(cls, *_arguments: object, **_named: object) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Drop it."""

    def __setitem__(self, _key: object, _value: object) -> None:
        """Drop it."""

    def append(self, _item: object) -> None:
        """Drop it."""

    def extend(self, _items: object) -> None:
        """Drop them."""

    add = append


class Storages(pickle.Unpickler):
    """Collects {key: bytes} of the storages that a pickle asks for; every class in it is an `Inert`."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin-1")  # which can read anything
        self.path = path
        self.found: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A new inert class of that name: nothing is imported."""
        return type(name, (Inert,), {"of": module})

    def persistent_load(self, pid: Any) -> Any:
        """Note ("storage", class, key, location, number of elements, a view in older files)."""
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            damaged(self.path, "its pickle asks for something that is no storage")
        _, kind, key, _, count, *_ = pid
        item = _ITEM_BYTES.get(getattr(kind, "__name__", "").removesuffix("Storage"))
        if item is None or type(key) is not str or type(count) is not int or count < 0:
            damaged(self.path, "its pickle describes a storage that torch does not know")
        if self.found.setdefault(key, count * item) != count * item:
            damaged(self.path, f"its pickle gives two sizes to the storage {key!r}")
        return Inert()


def damaged(path: Path, what: str) -> NoReturn:
    """Raise CheckpointError for a file of torch.save that is not whole."""
    raise CheckpointError(
        f"{path}: is damaged, or not a file of torch.save: {what}", hint="download it again"
    )
