"""`Checkpoint`: a safetensors checkpoint on disk, or on the Hub, as a `Source`."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.formats.opened import open_layout
from soupkit.checkpoint.formats.selection import Selection
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.header import Slot, TensorSpec
from soupkit.checkpoint.layout import Layout, check_same, companions, read_config
from soupkit.checkpoint.source import Source
from soupkit.errors import CheckpointError
from soupkit.identity import digest, files_identity
from soupkit.jsons import Json


class Remote(Protocol):
    """Where the files of a checkpoint come from when they are not on this disk yet: see `checkpoint.hub`."""

    layout: Layout
    commit: str

    def read(self, file: Path, position: int, view: memoryview) -> bool:
        """Fill `view` with the bytes of `file` from `position` on, or bring the whole file to disk and return
        False."""
        ...

    def sha256(self, file: Path) -> str | None:
        """The SHA-256 of a weight file without reading it; None when it is not known."""
        ...

    def fetch(self, *, weights: bool) -> None:
        """Bring companions, and with `weights` also weights, to disk."""
        ...

    def companions(self) -> list[Path]:
        """The configuration and tokenizer files, on disk."""
        ...


class Checkpoint(Source):
    """The tensors of one checkpoint, read when asked for.

    Opening reads headers only; `checkpoint[name]` reads one tensor; `read_into` reads a part of one into a
    buffer. bfloat16 and fp8 arrive as ml_dtypes arrays. Memory: the headers, and what the caller holds.
    remote: where files that are not on disk come from; selection: what to take of other programs' files,
    which `soupkit.checkpoint.formats.opened` knows. Raises CheckpointError for a damaged file, ReferenceError
    for a directory without weights.
    """

    def __init__(
        self,
        path: Path,
        *,
        reference: str | None = None,
        remote: Remote | None = None,
        selection: Selection = Selection(),
    ) -> None:
        layout = remote.layout if remote else open_layout(path, selection)
        self.remote = remote
        self.path = path
        self.reference = reference or str(path)
        self.directory = layout.directory
        self.files = layout.files
        self.metadata = layout.metadata
        self.specs = _with_aliases(layout)
        self.slots = {name: Slot(spec.dtype, spec.shape) for name, spec in self.specs.items()}
        self.ties = layout.ties if layout.spreads else _ties(self.specs)
        self.notes = layout.notes
        self.read = layout.read
        self.kind = layout.kind
        self.parts = layout.parts
        self._spreads = layout.spreads
        self.config_name, self.config = read_config(layout.directory)
        self._identities = layout.identities
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._descriptors)

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` (contiguous, of the tensor's dtype) with the elements of `name` from number `start` on.

        Raises CheckpointError when the file cannot be read, or is no longer the one whose header was read:
        what came of an earlier read may then belong to another state of it.
        """
        spec = self.specs[name]
        if not out.size:
            return
        read = partial(self._read, name)
        if spread := self._spreads.get(name):
            spread.read_into(start, out, read)
        else:
            read(spec.file, spec.start + start * out.itemsize, out)

    def _read(self, name: str, file: Path, position: int, out: Array) -> None:
        """Fill `out` with the bytes of a file from a position on, for a tensor `name`."""
        view = out.view(np.uint8).data
        try:
            if self.remote is not None and self.remote.read(file, position, view):
                return
            descriptor = self._descriptors.get(file) or self._open(file)
            _fill(view, descriptor, position, file, name)
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
        check_same(file, self._identities.get(file), partial(os.fstat, descriptor))

    def fetch(self, *, weights: bool = True) -> Path:
        """The directory with companions, and with `weights` also weights, on disk: what is not there is
        downloaded."""
        if self.remote is not None:
            self.remote.fetch(weights=weights)
        return self.directory

    @property
    def companions(self) -> list[Path]:
        """Configuration and tokenizer files beside the weights; none for a bare file without a
        configuration."""
        if self.remote is not None:
            return self.remote.companions()
        return companions(self.directory) if self.config_name or self.path.is_dir() else []

    def identity(self, *, threads: int = 0) -> str:
        """The content hash of its weights."""
        return content_hash(self, threads=threads)

    def record(self) -> Json:
        """A commit on the Hub, which never changes, or a path and what the companions there are now."""
        if self.remote is not None:
            hashes = {file.name: self.remote.sha256(file) for file in self.files}
            known = {name: sha256 for name, sha256 in hashes.items() if sha256}
            return {"commit": self.remote.commit} | ({"sha256": known} if known else {})
        beside = files_identity((path.name, path) for path in self.companions)
        for name, (kind, *found) in beside:
            if kind == "unreadable":  # it would be recorded as another file than the one that lies there
                raise CheckpointError(f"{self.directory / name}: cannot be read: {os.strerror(found[-1])}")
        return {"path": str(self.path.resolve()), "companions": digest(beside), **self.read}

    def _open(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                _allow_many_files()
                self._descriptors[file] = self._open_same(file)
            return self._descriptors[file]

    def _open_same(self, file: Path) -> int:
        """Open the file whose header was read, and no other that has taken its place since."""
        identity = self._identities.get(file)
        check_same(file, identity, file.stat)
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            check_same(file, identity, partial(os.fstat, descriptor))
        except CheckpointError:
            os.close(descriptor)
            raise
        return descriptor


def _fill(view: memoryview, descriptor: int, position: int, file: Path, name: str) -> None:
    """Read until `view` is full. Raises CheckpointError when the file ends before."""
    done = 0
    while done < len(view):
        more = os.preadv(descriptor, [view[done:]], position + done)
        if more == 0:
            raise CheckpointError(f"{file}: ended while tensor {name!r} was read; did something change it?")
        done += more


def _with_aliases(layout: Layout) -> Mapping[str, TensorSpec]:
    """safetensors' save_model drops tied tensors and notes {dropped: kept} in the metadata: show both
    again."""
    specs = dict(layout.specs)
    for dropped, kept in layout.metadata.items():
        if dropped not in specs and kept in layout.specs:
            specs[dropped] = layout.specs[kept]
    return specs


def _ties(specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """{name: the name it shares its bytes with} for tied tensors."""
    first: dict[tuple[Path, int], str] = {}
    ties: dict[str, str] = {}
    for name, spec in specs.items():
        if spec.num_elements and first.setdefault((spec.file, spec.start), name) != name:
            ties[name] = first[(spec.file, spec.start)]
    return ties


def _close_all(descriptors: dict[Path, int]) -> None:
    for descriptor in descriptors.values():
        with contextlib.suppress(OSError):  # only read from: nothing can be lost
            os.close(descriptor)
    descriptors.clear()


_limit_raised = False


def _allow_many_files() -> None:
    """Many ingredients times many shards pass the usual soft limit of 1,024 open files; the hard limit is
    higher."""
    global _limit_raised
    if not _limit_raised:
        _limit_raised = True
        try:
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
        except (ImportError, ValueError, OSError):
            pass
