"""The files of one checkpoint on the Hub, and how their bytes come here: downloaded on first use, or read by
ranges."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from soupkit.checkpoint.config.modules import in_folders, module_folders
from soupkit.checkpoint.header import Header, header_length, parse_header, read_header
from soupkit.checkpoint.hub.errors import explained
from soupkit.checkpoint.hub.ranges import Windows
from soupkit.checkpoint.hub.repository import Advance, NoRanges, Repository
from soupkit.checkpoint.layout import CONFIG_NAMES, INDEX_SUFFIX, is_companion, layout_of
from soupkit.manifest import MANIFEST_NAME

FIRST_READ = 1 << 17
"""Bytes of the first request for a header: most fit."""
NUM_CONNECTIONS = 8


class HubFiles:
    """The files of one checkpoint on the Hub: a `soupkit.checkpoint.checkpoint.Remote`.

    Making one downloads its configuration and shard index and reads the headers of its weights by range
    requests.
    """

    def __init__(
        self, repository: Repository, folder: str, weights: str, *, reference: str, stream: bool
    ) -> None:
        self.repository = repository
        self.commit = repository.commit
        self.directory = repository.snapshot / folder if folder else repository.snapshot
        self._reference = reference
        self._prefix = f"{folder}/" if folder else ""
        self._names = repository.names_in(folder)
        self._stream = stream
        self._here: set[Path] = set()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.windows = Windows(self._window)
        self._download([name for name in (*CONFIG_NAMES, MANIFEST_NAME) if name in self._names])
        self.index = self.directory / weights if weights.endswith(INDEX_SUFFIX) else None
        if self.index:
            self._download([weights])
        self.layout = layout_of(self.directory / weights, names=self._names, read=self._read_headers)

    def read(self, file: Path, position: int, view: memoryview) -> bool:
        """Fill `view` by ranges when streaming; else bring the file to disk, once, and return False."""
        if file in self._here:
            return False
        if not self._stream or file.is_file():
            self._download([file.name])
            return False
        size = self.repository.files[self._prefix + file.name].size
        assert size is not None
        with explained(self._reference):
            try:
                self.windows.read(file, position, view, size=size)
            except Exception:
                self._end.set()  # no thread keeps trying for what nobody waits for
                self.windows.close()
                raise
        return True

    @property
    def streams(self) -> bool:
        """Whether weights that are not on disk are read by ranges, and stay where they are."""
        return self._stream

    def sha256(self, file: Path) -> str | None:
        """What the Hub says of a weight file; None when it does not (small files, offline)."""
        return self.repository.files[self._prefix + file.name].sha256

    def missing(self) -> Mapping[str, int]:
        """{name: bytes} of the weight files that are not on disk yet."""
        return {
            file.name: self.repository.files[self._prefix + file.name].size or 0
            for file in self.layout.files
            if not file.is_file()
        }

    def fetch(self, *, weights: bool, advance: Advance = lambda _num_bytes: None) -> None:
        """Bring companions, and with `weights` also weights, to disk; `advance` is told the bytes of
        weights."""
        self.companions()
        if weights:
            self._download([file.name for file in self.layout.files], advance=advance)

    def companions(self) -> list[Path]:
        """The configuration and tokenizer files, on disk."""
        names = [name for name in self._names if is_companion(name)]
        self._download(names)
        below = [
            name.removeprefix(self._prefix) for name in self.repository.files if name.startswith(self._prefix)
        ]
        nested = in_folders(below, module_folders(self.directory))
        self._download(nested)
        return [self.directory / name for name in [*names, *nested]]

    def _download(self, names: Sequence[str], *, advance: Advance = lambda _num_bytes: None) -> None:
        with self._lock, explained(self._reference):
            todo = [name for name in names if self.directory / name not in self._here]
            with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
                list(
                    pool.map(
                        lambda name: self.repository.download(self._prefix + name, advance=advance), todo
                    )
                )
            self._here.update(self.directory / name for name in todo)

    def _read_headers(self, files: Sequence[Path]) -> list[Header]:
        with explained(self._reference), ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
            return list(pool.map(self._read_header, files))

    def _read_header(self, file: Path) -> Header:
        """A header from disk, or by one request, or two where it is long."""
        path = self._prefix + file.name
        size = self.repository.files[path].size
        if file.is_file() or size is None:
            return read_header(self.repository.download(path))
        try:
            start = self.repository.read_range(path, 0, min(FIRST_READ, size)) if size else b""
        except NoRanges:
            if self._stream:
                raise
            return read_header(self.repository.download(path))
        length = header_length(start[:8], file, size)
        if 8 + length > len(start):
            start += self.repository.read_range(path, len(start), 8 + length)
        return parse_header(start[8 : 8 + length], file, size)

    def _window(self, file: Path, start: int, stop: int) -> bytes:
        return self.repository.read_range(self._prefix + file.name, start, stop, end=self._end)
