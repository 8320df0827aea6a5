"""Pickles read by themselves: every class that one names is an `Inert`, which keeps what it is given and does
nothing.

Nothing is imported and nothing that belongs to a named class is called, whatever the pickle says; what a
format wants to know it takes out of the inert objects afterwards, and checks it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from soupkit.checkpoint.formats.memo import largest_entry
from soupkit.errors import CheckpointError, brief

MAX_PICKLE_BYTES = 100_000_000
"""Of what names tensors; as many as the safetensors library allows its headers."""


class Unreadable(CheckpointError):
    """A pickle cannot be followed to its end."""


class Inert:
    """What stands for an object of a pickle. of: the full name of its class; arguments: those that it was
    made from; state: what was set on it afterwards."""

    of = ""

    def __new__(cls, *arguments: object, **_named: object) -> Inert:
        inert = super().__new__(cls)
        inert.arguments = arguments
        inert.state = None
        return inert

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, _key: object, _value: object) -> None:
        """Drop it."""

    def append(self, _item: object) -> None:
        """Drop it."""

    def extend(self, _items: object) -> None:
        """Drop them."""

    add = append

    def field(self, name: str) -> Any:
        """What its state says under a name; None where it says nothing."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        return next((each[name] for each in states if isinstance(each, dict) and name in each), None)


class _Dict(dict[Any, Any]):
    """A dict that drops what torch notes on those of modules."""

    def __setstate__(self, _state: object) -> None:
        """Drop it."""


class _Tuple(tuple[Any, ...]):
    """A tuple, as sizes are."""

    __slots__ = ()

    def __setstate__(self, _state: object) -> None:
        """Drop it."""


class _Attribute(Inert):
    """getattr(class, name), by which a class within another is named: one more inert class."""

    def __new__(cls, owner: object, name: object, *_default: object) -> Any:
        return type(str(name), (Inert,), {"of": f"{name_in(owner)}.{name}"})


CONTAINERS: Mapping[str, type] = {
    "collections.OrderedDict": _Dict,
    "collections.defaultdict": _Dict,
    "torch.Size": _Tuple,
    "__builtin__.getattr": _Attribute,
    "builtins.getattr": _Attribute,
}
"""What is read as it is meant."""


class _Reader(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, known: Mapping[str, type], storage: Callable[[Any], object], encoding: str
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._known = {**CONTAINERS, **known}
        self._storage = storage
        self._made: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """One of the known, or a new inert class of that name: nothing is imported."""
        full = f"{module}.{name}"
        if full in self._known:
            return self._known[full]
        return self._made.setdefault(full, type(name, (Inert,), {"of": full}))

    def persistent_load(self, pid: Any) -> Any:
        """What stands outside the pickle."""
        return self._storage(pid)


def read_inert(
    content: bytes,
    path: Path,
    *,
    known: Mapping[str, type] = {},
    storage: Callable[[Any], object] | None = None,
    encoding: str = "latin-1",
) -> Any:
    """The containers of a pickle. Raises CheckpointError for what cannot be read.

    known: classes of ours that stand for others; each must say what `__setstate__` does, so that a pickle
    cannot change the class. storage: answers what the pickle asks from outside.
    """

    def refuse(_pid: object) -> NoReturn:
        raise CheckpointError(f"{path}: its pickle asks for something from outside of it", hint=_AGAIN)

    try:
        if largest_entry(content) >= len(content):
            raise CheckpointError(
                f"{path}: is damaged: its pickle numbers more values than it has bytes", hint=_AGAIN
            )
        return _Reader(io.BytesIO(content), known, storage or refuse, encoding).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle makes the unpickler fail in every way there is
        said = (str(error).splitlines() or [""])[0]
        raise Unreadable(
            f"{path}: its pickle cannot be read: {type(error).__name__}: {said}", hint=_AGAIN
        ) from None


_AGAIN = "download or save it again; it is damaged, or not what its name says"


def name_in(value: object) -> str:
    """The full name of what a pickle refers to, or of the class of an object in it; nothing for anything
    else."""
    found = getattr(value, "of", "")
    return found if isinstance(found, str) else ""


def field_of(value: object, kind: str, name: str, path: Path) -> Any:
    """A field of an object whose class ends so. Raises CheckpointError for any other object."""
    if not isinstance(value, Inert) or name_in(value).rpartition(".")[2] != kind:
        raise CheckpointError(
            f"{path}: holds {brief(describe(value))} where a {kind} was expected", hint=_AGAIN
        )
    return value.field(name)


def describe(value: object) -> str:
    """What a value of a pickle is, for a message."""
    return name_in(value) or type(value).__name__


def as_sizes(value: object) -> tuple[int, ...] | None:
    """A tuple or list of counts; None for anything else."""
    if not isinstance(value, tuple | list):
        return None
    if not all(type(size) is int and 0 <= size < 2**63 for size in value):
        return None
    return tuple(value)


def as_key(value: object) -> tuple[str | int, ...] | None:
    """A tuple of texts and numbers; None for anything else."""
    return value if isinstance(value, tuple) and all(type(part) in (str, int) for part in value) else None
