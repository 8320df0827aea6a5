"""What a command line is that scores checkpoints: the programs, scripts and files it names, and what changes
them.

What it reaches on its own is not seen: a server's model, files that a program finds by a name computed at run
time. For such a scorer there are `--no-cache` and `--fresh-scores`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from soupkit.identity import Identity, digest, file_identity, tree_identity, versions, walk

PLACEHOLDER = "{checkpoint}"
SOURCES = {
    *(".py", ".pyi", ".sh", ".bash", ".zsh", ".pl", ".rb", ".js", ".mjs", ".lua", ".r", ".jl", ".ipynb"),
    *(".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".json", ".jinja"),
}
CODE = {".py", ".sh", ".bash", ".pl", ".rb", ".js", ".lua", ".r", ".jl"}
VARIABLES = (
    *(
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
    ),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHASHSEED", "HF_HOME", "HF_HUB_OFFLINE", "TORCH_HOME"),
)
MOST_FILES = 5_000
MOST_TEXT = 1 << 20
_NOT_CODE = {"__pycache__", "node_modules", "site-packages"}
_NAMED = re.compile(r"[\w.~/+@%-]*[\w~/+@%-]\.\w+")
_WORD = re.compile(r"[A-Za-z_]\w*")


def command_identity(command: str) -> str:
    """Everything that is known to decide what `command` prints, as one short name.

    The words themselves; the content of every file and folder among them, also after `--key=`, within a
    quoted command, on PATH and after `-m`; of a script the Python code that it can import from its folder and
    PYTHONPATH, and the code and configuration that its text names; the environment that chooses interpreters,
    and every variable that a script speaks of; the interpreter's installed packages; the working directory.
    """
    try:
        words = list(_words(shlex.split(command)))
    except ValueError:
        words = [command]
    files = _Files([root for root in os.environ.get("PYTHONPATH", "").split(os.pathsep) if root])
    for before, word in zip(["", *words], words, strict=False):
        if before in ("-m", "-c"):  # then the working directory is where modules come from
            files.speak(word)
            files.take_code(Path.cwd())
        files.take_word(word)
    for name in ("python", "python3"):  # what a script starts
        files.take_word(name)
    found = files.identity()
    spoken = {*VARIABLES, *(name for name in files.words if name in os.environ)}
    environment = {name: os.environ.get(name) for name in sorted(spoken)}
    return digest("command", command, os.getcwd(), environment, found, versions("soupkit", "numpy"))  # noqa: PTH109


def _words(words: Iterable[str]) -> Iterator[str]:
    """Each word, what stands after its `=`, and the words within one that is a command itself (`sh -c
    '…'`)."""
    for word in words:
        yield word
        if "=" in word:
            yield word.partition("=")[2]
        if set(word) & set(" \t\n;|&"):
            yield from _words(part for part in re.split(r"[\s;|&()<>\"']+", word) if part)


class _Files:
    """The files that a command depends on, found one from the other; `words` are those of every text among
    them."""

    def __init__(self, roots: Iterable[str]) -> None:
        self.found: dict[Path, object] = {}
        self.words: set[str] = set()
        self._paths = [Path(root) for root in roots]
        self._roots: dict[Path, None] = {}

    def identity(self) -> Identity:
        """Places and contents, in one order; packages beside the scripts are taken where some text names
        them."""
        for root in self._paths if self._roots else ():
            self.take_code(root)
        entered: set[Path] = set()
        while new := [folder for folder in self._packages() if folder not in entered]:
            for folder in new:
                entered.add(folder)
                self._take_package(folder)
        return [[str(path), entry] for path, entry in sorted(self.found.items())]

    def speak(self, text: str) -> None:
        """Take note of the words of a text: names of modules, folders and variables may be among them."""
        self.words.update(_WORD.findall(text))

    def take_word(self, word: str) -> None:
        """A word that names a file, a folder or a program."""
        if not word or PLACEHOLDER in word:
            return
        path = _path(word)
        if path is None:
            place = shutil.which(word) if "/" not in word else None
            if place is not None:
                self._take_file(Path(place))
        elif path.is_file():
            self._take_file(path)
        elif Path.cwd().is_relative_to(path.resolve()):
            self.take_code(path)
        else:
            self.found[self._led_to(path)] = tree_identity(path)

    def take_code(self, folder: Path) -> None:
        """The Python files directly in a folder that modules are imported from; its packages come at the
        end."""
        real = self._led_to(folder)
        if real in self._roots or real.name == "bin" or not real.is_dir():
            return
        self._roots[real] = None
        for path in sorted(real.glob("*.py"))[:MOST_FILES]:
            self._take_text(path)

    def _take_file(self, path: Path) -> None:
        real = self._led_to(path)
        if real in self.found:
            return
        if path.parent.name == "bin":
            for packages in sorted(path.parent.parent.glob("lib/python*/site-packages")):
                self.found[packages] = _times(packages)
        text = self._take_text(path)
        if text is None or not (path.suffix.lower() in CODE or text.startswith("#!")):
            return
        self.take_code(path.parent)
        for word in dict.fromkeys(_NAMED.findall(text)):
            for named in (path.parent / word, Path(word)):
                if named.suffix.lower() in SOURCES and _is_file(named):
                    self._take_file(named)

    def _take_text(self, path: Path) -> str | None:
        """Take a file, and its words where it is text; a large program without a suffix counts by size and
        time."""
        text = _text_of(path)
        real = self._led_to(path)
        self.found[real] = file_identity(path) if text is not None or path.suffix else _times(path)
        self.speak(text or "")
        return text

    def _led_to(self, path: Path) -> Path:
        """Where a path leads. That counts too: a link may come to lead to another file that was taken all
        along."""
        real, named = path.resolve(), path.absolute()
        if real != named:
            self.found[named] = ["leads to", str(real)]
        return real

    def _packages(self) -> list[Path]:
        folders = (path for root in self._roots for path in _folders_in(root))
        return [path for path in folders if path.name in self.words and _may_hold_code(path)]

    def _take_package(self, folder: Path) -> None:
        for number, path in enumerate(walk(folder, enter=_may_hold_code)):
            if number > MOST_FILES:
                break
            if path.suffix == ".py" and self._led_to(path) not in self.found:
                self._take_text(path)


def _folders_in(root: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir())
    except OSError:
        return []


def _may_hold_code(folder: Path) -> bool:
    return (
        folder.name not in _NOT_CODE
        and not folder.name.startswith(".")
        and not (folder / "pyvenv.cfg").exists()
    )


def _path(word: str) -> Path | None:
    try:
        path = Path(word).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _text_of(path: Path) -> str | None:
    """The text of a file that is one, and not long."""
    try:
        if path.stat().st_size > MOST_TEXT:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return None if b"\0" in content else content.decode(errors="replace")


def _times(path: Path) -> Identity:
    """A program or folder by its place, size and time."""
    try:
        status = path.stat()
    except OSError as error:
        return ["unreadable", error.errno]
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
