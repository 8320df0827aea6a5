"""What things are, by their content and never by a text that may come to mean something else.

Files, folders, data sets and library versions; `soupkit.command_identity` does programs. Free of torch and
numpy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from soupkit import __version__

MOST_READ = 1 << 26
"""Bytes of one folder that are read; the files after that count by place, size and times."""
MOST_OF_A_FILE = 1 << 20
_BLOCK = 1 << 20
_OUTPUT = "soupkit.json"
_LIBRARIES = ("soupkit", "torch", "torchvision", "timm", "open_clip_torch", "transformers", "numpy", "pillow")
_TORCHVISION = {
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "mnist": "MNIST",
    "kmnist": "KMNIST",
    "fashion_mnist": "FashionMNIST",
}

Identity = list[Any]
"""What something is, as JSON has it: what `digest` makes a name of."""


def digest(*parts: object) -> str:
    """One short name for JSON-able values; the order of keys does not matter."""
    return xxhash.xxh3_128_hexdigest(
        json.dumps(parts, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
    )


def versions(*packages: str) -> dict[str, str | None]:
    """Installed versions, looked up without an import; by default those of the libraries that change
    numbers."""
    return {package: version_of(package) for package in packages or _LIBRARIES}


@cache
def version_of(package: str) -> str | None:
    """The installed version of one package, if any. Its metadata is parsed once per process: 10 ms each."""
    try:
        return __version__ if package == "soupkit" else metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def file_identity(path: Path, *, most: int = MOST_READ) -> Identity:
    """A file's bytes; of one larger than `most` its place, size and times. What cannot be read says so.

    The time of the last change to the inode is among them: a program may set the other one back.
    """
    try:
        status = path.stat()
        if status.st_size <= most and path.is_file():
            return ["bytes", status.st_size, _hash_of(path)]
        return ["file", str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    except OSError as error:
        return ["unreadable", str(path), error.errno]


def _hash_of(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def files_identity(files: Iterable[tuple[str, Path]]) -> Identity:
    """The names and identities of files: small ones by their bytes, as long as that is cheap."""
    found: Identity = []
    left = MOST_READ
    for name, path in files:
        entry = file_identity(path, most=min(left, MOST_OF_A_FILE))
        left -= entry[1] if entry[0] == "bytes" else 0
        found.append([name, entry])
    return found


def tree_identity(root: Path, *, keep: Callable[[Path], bool] = lambda _: True) -> Identity:
    """Every file below a folder, or the file itself; links are followed, outputs of soupkit are no part of
    it."""
    if not root.is_dir():
        return [file_identity(root)]
    return files_identity((path.relative_to(root).as_posix(), path) for path in walk(root) if keep(path))


def walk(root: Path, *, enter: Callable[[Path], bool] = lambda _: True) -> Iterator[Path]:
    """The files below a folder in the order of their names, through links, each folder once."""
    seen: set[tuple[int, int]] = set()

    def below(folder: Path, top: bool) -> Iterator[Path]:
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return
        place = (status.st_dev, status.st_ino)
        if place in seen or (not top and any(entry.name == _OUTPUT for entry in entries)):
            return
        seen.add(place)
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_dir():
                yield path
            elif enter(path):
                yield from below(path, False)

    yield from below(root, True)


def data_identity(data: str, data_dir: Path | None = None) -> str:
    """What `--data` and `--data-dir` name at this moment: the files, and the version of the package that
    reads them.

    Of a set on the Hugging Face Hub: the revision and the files in its cache. A set that is nowhere on this
    disk (a bucket, a pipe) counts by its name here; once it is open, `soupkit.task.images.data` adds what its
    images are.
    """
    return digest("data", _data(data, data_dir))


def _data(data: str, data_dir: Path | None) -> Identity:
    if data == "digits":
        return [data, versions("scikit-learn", "numpy")]
    if data == "glyphs":
        return [data, versions("matplotlib", "pillow", "numpy")]
    if Path(data).is_dir():
        return ["folder", tree_identity(Path(data))]
    readers = versions("timm", "torchvision", "datasets", "tensorflow-datasets", "webdataset")
    return [data, readers, [tree_identity(place) for place in _places(data, data_dir) if place.exists()]]


def _places(data: str, data_dir: Path | None) -> Iterator[Path]:
    """Where the data set of timm's factory may lie."""
    library, _, name = data.partition("/")
    home = Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))  # noqa: PTH111  (no home: as it is)
    if data_dir is not None:
        own = data_dir / _TORCHVISION.get(name.lower(), "") if library.lower() == "torch" else data_dir
        yield own if own.exists() else data_dir
    if library.lower() in ("hfds", "hfids"):
        name = name.partition("?")[0]
        yield Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"datasets--{name.replace('/', '--')}"
        yield Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets") / name.replace("/", "___")
    if library.lower() == "tfds" and data_dir is None:
        yield Path(os.path.expanduser("~/tensorflow_datasets")) / name.partition(":")[0]  # noqa: PTH111
