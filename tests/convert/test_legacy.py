"""Files of torch.save before torch 1.6: what torch.load leaves unread or unfilled is an error, no other
values."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from soupkit.checkpoint.formats.pickles import load_pickle
from soupkit.errors import CheckpointError

WHOLE = torch.arange(6.0)
VALUES = {
    "a": WHOLE,
    "half": WHOLE[3:],
    "b": torch.ones(4),
    "c": torch.tensor([1, 2]),
    "d": WHOLE.bfloat16(),
    "e": torch.zeros(0),
    "f": torch.tensor([True, False]),
    "g": torch.nn.Parameter(WHOLE + 1),
    "h": torch.complex(WHOLE, WHOLE),
}


def parts(raw: bytes) -> list[bytes]:
    """The five pickles, and the bytes of the storages."""
    file, found = io.BytesIO(raw), []
    for _ in range(5):
        start = file.tell()
        for _ in pickletools.genops(file):
            pass
        found.append(raw[start : file.tell()])
    return [*found, raw[file.tell() :]]


def made(path: Path, change: Callable[[list[bytes]], None]) -> Path:
    """A file of VALUES with other parts."""
    torch.save(VALUES, path, _use_new_zipfile_serialization=False)
    pieces = parts(path.read_bytes())
    change(pieces)
    path.write_bytes(b"".join(pieces))
    return path


def relisted(change: Callable[[list[str]], list[str]]) -> Callable[[list[bytes]], None]:
    def apply(pieces: list[bytes]) -> None:
        pieces[4] = pickle.dumps(change(pickle.loads(pieces[4])), protocol=2)

    return apply


def test_whole_files_give_their_values(tmp_path: Path) -> None:
    found = load_pickle(made(tmp_path / "m.pt", lambda _: None))
    assert found.keys() == VALUES.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in VALUES.items())


def append(pieces: list[bytes], content: bytes) -> None:
    pieces.append(content)


DAMAGED = {
    "no storage listed": (relisted(lambda _: []), "its list of 0 storages is not that of the 8"),
    "the last one not listed": (relisted(lambda keys: keys[:-1]), "its list of 7 storages"),
    "the first one not listed": (relisted(lambda keys: keys[1:]), "is damaged"),
    "one listed twice": (relisted(lambda keys: [*keys, keys[0]]), "is damaged"),
    "one that nothing asks for": (relisted(lambda keys: [*keys, "7"]), "is damaged"),
    "a list that is none": (relisted(lambda keys: keys and None), "is damaged"),  # type: ignore[arg-type, return-value]
    "something after it": (
        lambda pieces: append(pieces, b"x" * 30),
        "30 bytes follow the last of its storages",
    ),
    "a second file after it": (
        lambda pieces: append(pieces, b"".join(pieces)),
        "bytes follow the last of its storages",
    ),
    "cut": (lambda pieces: pieces.append(pieces.pop()[:-2]), "is damaged"),
    "a count that is less": (
        lambda pieces: pieces.append(struct.pack("<q", 3) + pieces.pop()[8:]),
        "is damaged",
    ),
    "a count without end": (
        lambda pieces: pieces.append(struct.pack("<q", 2**60) + pieces.pop()[8:]),
        "is damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    """A storage that is not listed was as the memory was before, with exit code 0."""
    change, message = DAMAGED[name]
    with pytest.raises(CheckpointError, match=message):
        load_pickle(made(tmp_path / "m.pt", change))
