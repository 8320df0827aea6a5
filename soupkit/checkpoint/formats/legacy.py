"""Files of torch.save before torch 1.6: five pickles in a row (a magic number, a version, the system, the
object, the list of its storages), then the storages' bytes.

torch.load fills the storages that the list names. One that the object asks for and the list does not name it
leaves as the memory was; what follows the last one it does not look at. So both are looked at here.
"""

from __future__ import annotations

import os
import pickletools
from pathlib import Path
from typing import BinaryIO

from soupkit.checkpoint.formats.inert import read_inert
from soupkit.checkpoint.formats.storages import Storages, damaged

_COUNT_BYTES = 8
"""Before each storage stands how many elements it has."""


def check_legacy(path: Path) -> None:
    """Every storage of the object must be in the list, once, and nothing may follow the last one.

    For a file that torch.load has taken already, so that its pickles are sound. Raises CheckpointError,
    OSError. Memory: the pickles. Cost: one pass over them.
    """
    with path.open("rb") as file:
        for _ in range(3):
            _next_pickle(file)
        storages = Storages(path)
        read_inert(_next_pickle(file), path, storage=storages)
        listed = read_inert(_next_pickle(file), path)
        start = file.tell()
        size = os.fstat(file.fileno()).st_size
    if sorted(listed) != sorted(storages.found):
        damaged(
            path,
            f"its list of {len(listed)} storages is not that of the {len(storages.found)} of its tensors",
        )
    end = start + sum(_COUNT_BYTES + num_bytes for num_bytes in storages.found.values())
    if size != end:
        damaged(path, f"{size - end} bytes follow the last of its storages")


def _next_pickle(file: BinaryIO) -> bytes:
    """The bytes of the pickle that begins here."""
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    end = file.tell()
    file.seek(start)
    return file.read(end - start)
