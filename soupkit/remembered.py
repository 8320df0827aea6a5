"""What is known already: the one place where results are remembered, under what they are results of.

An entry is JSON-able values and arrays under a key that `soupkit.identity.digest` makes of everything they
depend on. Files lie under $SOUPKIT_CACHE, else $XDG_CACHE_HOME/soupkit, else ~/.cache/soupkit. A file that is
damaged is as if it were not there, and a cache that cannot be written is no reason to stop.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

import xxhash

from soupkit.asked import Remembers
from soupkit.identity import digest
from soupkit.jsons import Json, JsonView
from soupkit.whole import final_name, whole_file
from soupkit.world import cache_folder

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["scores", "points", "predictions"]
KINDS: tuple[Kind, ...] = ("scores", "points", "predictions")
FORMAT = 2
_MAGIC = b"soupkit remembered 2\n"
_SUFFIX = ".remembered"
_OURS = re.compile(rf"[0-9a-f]{{32}}{re.escape(_SUFFIX)}")
_OF_FORMAT_1 = re.compile(r"\.?[0-9a-f]{32}(\.\d+)?\.(npz|json)")
_BLOCK = 1 << 20

Entry = tuple[Json, dict[str, "np.ndarray"]]
"""JSON-able values, and arrays by name."""


class Weighed(Protocol):
    """A `Mixture`: names, coefficients float64[K, B], their divisor, the column of each tensor, the rows that
    count."""

    @property
    def ingredients(self) -> Sequence[str]: ...
    @property
    def coefficients(self) -> np.ndarray: ...
    @property
    def divisor(self) -> float: ...
    @property
    def blocks(self) -> Mapping[str, int] | None: ...
    def used(self) -> list[int]: ...


class Remembered:
    """The entries of one kind. reads, writes: whether it may look anything up, and keep anything."""

    def __init__(self, kind: Kind, *, reads: bool = True, writes: bool = True) -> None:
        self.kind, self.reads, self.writes = kind, reads, writes
        self.failure: str | None = None
        """Why an entry could not be kept, once that has happened."""

    @classmethod
    def of(cls, kind: Kind, recipe: Remembers) -> Remembered:
        """As a recipe with `RememberOptions` wants it."""
        return cls(kind, reads=recipe.cache and not recipe.fresh_scores, writes=recipe.cache)

    def key(self, *parts: object) -> str:
        """The key of what depends on these JSON-able parts."""
        return digest(FORMAT, self.kind, *parts)

    def key_of(self, contents: Sequence[str], mixture: Weighed, judge: str, beside: object = None) -> str:
        """The key of what a judge finds of a mixture of the weights with these content hashes.

        judge: its fingerprint; beside: what it sees beside the weights. Weights are summed in the order of
        their names, which decides the last bits; in which order they are given does not matter here.
        """
        summed = sorted(mixture.used(), key=lambda k: mixture.ingredients[k])
        rows = [[contents[k], mixture.coefficients[k].tolist()] for k in summed]
        blocks = sorted(mixture.blocks.items()) if mixture.blocks else None
        return self.key(rows, mixture.divisor, blocks, judge, beside)

    def read(self, key: str) -> Entry | None:
        """What is remembered under `key`; None when that is nothing, is damaged or cannot be read."""
        if not self.reads:
            return None
        try:
            with (_folder(self.kind) / f"{key}{_SUFFIX}").open("rb") as file:
                return _read(file)
        except Exception:  # whatever a damaged file makes the reader raise
            return None

    def write(self, key: str, values: JsonView, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Remember, whole or not at all, on the disk before it has its name. What stops that is kept in
        `failure`."""
        if not self.writes:
            return
        try:
            folder = _folder(self.kind)
            folder.mkdir(parents=True, exist_ok=True)
            with (
                whole_file(folder / f"{key}{_SUFFIX}", sync=True) as temporary,
                temporary.open("w+b") as file,
            ):
                _write(file, values, arrays or {})
                file.flush()
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
            self.failure = getattr(error, "strerror", None) or str(error)

    def said(self, num: int, what: str) -> list[str]:
        """What is worth telling at the end: how much was known, and that nothing could be kept."""
        known = [f"{num} {what} were remembered from earlier runs"] if num else []
        return known + (
            [f"nothing could be remembered for later runs: {self.failure}"] if self.failure else []
        )


def _folder(kind: str) -> Path:
    return cache_folder() / kind


def _write(file: BinaryIO, values: JsonView, arrays: Mapping[str, np.ndarray]) -> None:
    """The magic words, the hash of the rest, and the rest: an archive of arrays."""
    import numpy as np

    start = len(_MAGIC) + xxhash.xxh3_128().digest_size
    file.write(_MAGIC + bytes(start - len(_MAGIC)))
    named = {f"array {name}": array for name, array in arrays.items()}
    np.savez(file, values=np.array(json.dumps(dict(values))), **named)  # type: ignore[arg-type]
    file.seek(start)
    found = _hash_of(file)
    file.seek(len(_MAGIC))
    file.write(found)


def _read(file: BinaryIO) -> Entry | None:
    import numpy as np

    if file.read(len(_MAGIC)) != _MAGIC:
        return None
    known, start = file.read(xxhash.xxh3_128().digest_size), file.tell()
    if _hash_of(file) != known:
        return None
    file.seek(start)
    with np.load(file, allow_pickle=False) as found:
        arrays = {name.removeprefix("array "): found[name] for name in found.files if name != "values"}
        return json.loads(str(found["values"])), arrays


def _hash_of(file: BinaryIO) -> bytes:
    """The hash of a file from where it stands to its end."""
    state = xxhash.xxh3_128()
    while block := file.read(_BLOCK):
        state.update(block)
    return state.digest()


@dataclass(frozen=True)
class Usage:
    """How many files of one kind are remembered, and their bytes."""

    kind: str
    num_files: int
    num_bytes: int


def usage(kind: str) -> Usage:
    """What of one kind lies in the cache; entries of earlier formats, which nothing reads, included."""
    sizes = []
    for path in _files(kind):
        with contextlib.suppress(OSError):
            sizes.append(path.stat().st_size)
    return Usage(kind, len(sizes), sum(sizes))


def clear(kind: str) -> list[tuple[Path, str]]:
    """Remove what soupkit wrote of one kind, and nothing else; returns what could not be removed, and why."""
    left = []
    for path in _files(kind):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            left.append((path, error.strerror or str(error)))
    with contextlib.suppress(OSError, RuntimeError):
        _folder(kind).rmdir()
    return left


def _files(kind: str) -> Iterator[Path]:
    try:
        paths = sorted(_folder(kind).iterdir())
    except (OSError, RuntimeError):
        return
    for path in paths:
        if (_OURS.fullmatch(final_name(path.name)) or _OF_FORMAT_1.fullmatch(path.name)) and path.is_file():
            yield path
