"""A repository on the Hub at one commit: its files, downloaded or read in parts, and checked."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from soupkit.checkpoint.hub.errors import Interrupted, retried
from soupkit.errors import CheckpointError
from soupkit.whole import whole_file

NUM_DOWNLOAD_TRIES = 3
"""Fewer than for other requests: huggingface_hub tries again by itself."""
Advance = Callable[[int], None]


class NoRanges(CheckpointError):
    """A server that sends files only whole."""


class _Response(Protocol):
    """What is read of an answer of the Hub's client, whose class depends on huggingface_hub's version."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def history(self) -> Sequence[_Response]: ...


@dataclass(frozen=True)
class HubFile:
    """What the Hub says of a file: bytes, SHA-256 for LFS files, git's own hash for others."""

    size: int | None = None
    sha256: str | None = None
    blob_id: str | None = None


@dataclass(frozen=True)
class Repository:
    """A repository at a commit and its place in huggingface_hub's cache; `files` by their path inside it."""

    name: str
    commit: str
    files: Mapping[str, HubFile]

    @property
    def folder(self) -> Path:
        """Where the cache keeps this repository."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE).expanduser().resolve() / repo_folder_name(
            repo_id=self.name, repo_type="model"
        )

    @property
    def snapshot(self) -> Path:
        """Where the cache keeps the files of this commit."""
        return self.folder / "snapshots" / self.commit

    def names_in(self, inside: str) -> list[str]:
        """The names of the files directly in a folder."""
        prefix = f"{inside.strip('/')}/" if inside.strip("/") else ""
        names = (path.removeprefix(prefix) for path in self.files if path.startswith(prefix))
        return sorted(name for name in names if name and "/" not in name and "\\" not in name)

    def remember(self, revision: str | None) -> None:
        """Note in the cache which commit a branch or tag meant, as huggingface_hub does, for work offline."""
        if revision != self.commit:
            path = self.folder / "refs" / (revision or "main")
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as temporary:
                    temporary.write_text(self.commit)

    def remembered(self, revision: str | None) -> str | None:
        """The commit that a revision meant when the Hub was last asked; None when it never was."""
        if revision and (self.folder / "snapshots" / revision).is_dir():
            return revision
        try:
            return (self.folder / "refs" / (revision or "main")).read_text().strip()
        except OSError:
            return None

    def download(self, path: str, *, advance: Advance = lambda _num_bytes: None) -> Path:
        """Bring one file into the cache, check it against what the Hub says of it, and return where it is.

        A copy that the cache has is taken when its size is right. Raises CheckpointError for one that arrives
        damaged.
        """
        place, expected = self.snapshot / path, self.files[path]
        if place.is_file() and expected.size in (None, place.stat().st_size):
            return place
        found = Path(
            retried(lambda: self._fetch(path, place.is_file(), advance), num_tries=NUM_DOWNLOAD_TRIES)
        )
        difference = _difference(found, expected)
        if difference:
            blob = found.resolve()
            found.unlink()
            blob.unlink(missing_ok=True)
            raise CheckpointError(
                f"{self.name}@{self.commit}:{path}: {difference}; it was removed from the cache",
                hint="run it again; if it stays, the repository or a proxy on the way is at fault",
            )
        return found

    def _fetch(self, path: str, again: bool, advance: Advance) -> str:
        from huggingface_hub import hf_hub_download

        bar: Any = type("Bar", (_Bar,), {"advance": staticmethod(advance)})
        return hf_hub_download(self.name, path, revision=self.commit, force_download=again, tqdm_class=bar)

    def read_range(self, path: str, start: int, stop: int, *, end: threading.Event | None = None) -> bytes:
        """The bytes [start, stop) of a file. Raises CheckpointError when it is not the file that the Hub
        listed."""
        return retried(lambda: self._range(path, start, stop), stop=end)

    def _range(self, path: str, start: int, stop: int) -> bytes:
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(self.name, path, revision=self.commit)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            self._check_range(path, start, stop, response)
            data = bytearray()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > stop - start:
                    raise self._changed(path)
        if len(data) < stop - start:
            raise Interrupted(f"{len(data)} of {stop - start} bytes")
        return bytes(data)

    def _check_range(self, path: str, start: int, stop: int, response: _Response) -> None:
        """The answer must be the range of a file of the size that the Hub listed, before any of it is
        read."""
        size = self.files[path].size
        if response.status_code == 200 and start == 0 and response.headers.get("Content-Length") == str(stop):
            return
        if response.status_code != 206:
            raise NoRanges(
                f"{self.name}:{path}: the server does not send parts of files (it answers "
                f"{response.status_code})",
                hint="leave --stream out, so that files are downloaded whole",
            )
        linked = next(
            (hop.headers["X-Linked-Etag"] for hop in response.history if "X-Linked-Etag" in hop.headers), ""
        )
        sha256 = self.files[path].sha256 or ""
        changed = linked and sha256 and linked.strip('"') != sha256
        if changed or response.headers.get("Content-Range", "") != f"bytes {start}-{stop - 1}/{size}":
            raise self._changed(path)

    def _changed(self, path: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name}@{self.commit}:{path}: is not the file that the Hub listed; did it change "
            f"meanwhile?",
            hint="run it again",
        )


class _Bar:
    """What huggingface_hub takes for a progress bar: passes on how many bytes came."""

    advance: Advance

    def __init__(self, *_arguments: object, **options: object) -> None:
        self.n = options.get("initial", 0)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_error: object) -> None:
        """Nothing to take down."""

    def update(self, num_bytes: float | None = 1) -> None:
        """Called for each piece; negative when a download begins again."""
        self.advance(int(num_bytes or 0))

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith(
            "update_"
        ):  # bars of Xet: bytes over the network, which are counted when they are written
            raise AttributeError(name)
        return lambda *_arguments, **_options: None


def _difference(path: Path, expected: HubFile) -> str | None:
    """How a downloaded file differs from what the Hub says of it; None when it does not."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if expected.sha256 and file.read(24) == b"version https://git-lfs.":
            return "arrived as a Git LFS pointer instead of the file"
        if expected.size is not None and size != expected.size:
            return f"arrived with {size} bytes, the Hub lists {expected.size}"
        file.seek(0)
        if expected.sha256:
            found, known = hashlib.file_digest(file, "sha256").hexdigest(), expected.sha256
        elif expected.blob_id and size < 100 << 20:
            found, known = (
                hashlib.sha1(b"blob %d\0" % size + file.read(), usedforsecurity=False).hexdigest(),
                expected.blob_id,
            )
        else:
            return None
    return None if found == known else f"arrived with hash {found}, the Hub lists {known}"
