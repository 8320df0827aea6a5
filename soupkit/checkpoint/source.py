"""`Source`: what has tensors, wherever they come from: files, the Hub, memory, or other sources through a
view.

A plain mapping of arrays will do wherever tensors are only read; the functions here say of both what can be
said.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array, safetensors_name
from soupkit.checkpoint.header import Slot
from soupkit.errors import CheckpointError
from soupkit.jsons import Json, JsonView


class Source(Mapping[str, Array]):
    """A lazy, read-only mapping of tensors, and what is to be known of them beside their numbers.

    reference: what to call it. slots: dtype and shape of every tensor as it is read. files: those that hold
    weights; their folder is where the companions lie. config: the model's configuration, {} where there is
    none. ties: {name: the name that it shares its bytes with}.
    """

    reference: str
    slots: Mapping[str, Slot]
    files: Sequence[Path]
    config: JsonView
    ties: Mapping[str, str] = MappingProxyType({})

    @property
    @abstractmethod
    def companions(self) -> Sequence[Path]:
        """Configuration and tokenizer files that travel with the weights, on disk."""

    @abstractmethod
    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` (contiguous, of the tensor's dtype) with the elements of `name` from number `start`
        on."""

    @abstractmethod
    def identity(self, *, threads: int = 0) -> str:
        """What it is by its content: `soupkit.checkpoint.hashing.content_hash`. Cost: one read of all
        weights."""

    @abstractmethod
    def record(self) -> Json:
        """What a manifest says of it beside its reference: where it lies, and how it is read otherwise than
        it lies.

        A `path` is absolute. `content` only where that is of something else than what is read, as of a view's
        source.
        """

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(slot.num_bytes for slot in self.slots.values())

    def __getitem__(self, name: str) -> Array:
        slot = self.slots[name]
        array = np.empty(slot.shape, NUMPY_DTYPES[slot.dtype])
        self.read_into(name, 0, array.reshape(-1))
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def __contains__(self, name: object) -> bool:
        return name in self.slots

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reference!r})"


def read_chunk(source: Mapping[str, Array], name: str, start: int, out: Array) -> None:
    """Fill `out` from any mapping of arrays: chunked where the source can, else by way of the whole
    tensor."""
    if isinstance(source, Source):
        source.read_into(name, start, out)
    else:
        out[:] = np.asarray(source[name]).reshape(-1)[start : start + out.size]


def slots_of(source: Mapping[str, Array]) -> Mapping[str, Slot]:
    """The dtype and shape of every tensor of any mapping of arrays, without reading weights where it can be
    avoided."""
    if isinstance(source, Source):
        return source.slots
    return {name: _slot_of(name, np.asarray(source[name])) for name in source}


def _slot_of(name: str, values: Array) -> Slot:
    try:
        return Slot(safetensors_name(values.dtype), values.shape)
    except CheckpointError as error:
        raise CheckpointError(f"tensor {name!r}: {error}", hint=error.hint) from None


def name_of(source: Mapping[str, Array], position: int) -> str:
    """What to call an ingredient in a message."""
    return source.reference if isinstance(source, Source) else f"ingredient {position}"


def folder_of(source: Source) -> Path:
    """The folder of a source's files, with its companions on disk; named like it where it has no files."""
    folders = [path.parent for path in (source.companions or source.files)]
    return min(folders, key=lambda folder: len(folder.parts)) if folders else Path(source.reference)


def config_of(source: Mapping[str, Array]) -> JsonView:
    """The configuration of any mapping of arrays; {} where it has none."""
    return source.config if isinstance(source, Source) else {}


def tied_names(source: Mapping[str, Array]) -> Mapping[str, str]:
    """{name: the name that it shares its bytes with} for the tied tensors of any mapping of arrays."""
    return source.ties if isinstance(source, Source) else {}
