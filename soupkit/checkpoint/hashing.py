"""Content hashes: of weights, whatever files hold them, and of files.

The content hash is a tree. A tensor is cut into blocks of BLOCK elements (always, whatever the chunks of a
reader); the digest of a checkpoint is the digest of "name dtype shape" and the block digests of every tensor,
sorted by name. So it does not depend on shards, on the order in a file or on threads, and a merge computes it
from the chunks that it reads.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import read_chunk, slots_of, tied_names
from soupkit.world import available_cores

BLOCK = 1 << 18
"""Elements of one block of the tree."""
FILES_HASH = "files-xxh3-128"
"""What a hash of files begins with, in place of `xxh3-128` for weights."""


class ContentHash:
    """Collects the block digests of one checkpoint, in any order and from any thread (XXH3, 128 bits).

    Tied tensors count once, under the name that holds the bytes. Not for defence against forgery: for that,
    record the SHA-256 of the files.
    """

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        self._slots = slots
        self._blocks: dict[str, list[bytes]] = {
            name: [b""] * num_blocks(slot) for name, slot in slots.items()
        }

    def add(self, name: str, block: int, digest: bytes) -> None:
        """Take the XXH3-128 digest of block number `block` of tensor `name`."""
        if name in self._blocks:
            self._blocks[name][block] = digest

    def digest(self) -> str:
        """The content hash, once every block has been added."""
        tree = xxhash.xxh3_128()
        for name in sorted(self._slots):
            slot = self._slots[name]
            tree.update(f"{name}\0{slot.dtype}\0{list(slot.shape)}\0".encode())
            tree.update(b"".join(self._blocks[name]))
        return f"xxh3-128:{tree.hexdigest()}"


def hashed_slots(source: Mapping[str, Array]) -> dict[str, Slot]:
    """The tensors that a content hash covers: all but the dropped names of ties."""
    ties = tied_names(source)
    return {name: slot for name, slot in slots_of(source).items() if name not in ties}


def num_blocks(slot: Slot) -> int:
    """Blocks of a tensor; an empty tensor has none."""
    return -(-slot.num_elements // BLOCK)


def content_hash(source: Mapping[str, Array], *, threads: int = 0) -> str:
    """The content hash of a checkpoint. Cost: one read of all weights; memory: one block per thread."""
    slots = hashed_slots(source)
    hashes = ContentHash(slots)
    local = threading.local()

    def hash_tensor(name: str) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = np.empty(BLOCK * 8, np.uint8)
        dtype = NUMPY_DTYPES[slots[name].dtype]
        for block in range(num_blocks(slots[name])):
            size = min(BLOCK, slots[name].num_elements - block * BLOCK)
            chunk = local.buffer[: size * dtype.itemsize]
            read_chunk(source, name, block * BLOCK, chunk.view(dtype))
            hashes.add(name, block, xxhash.xxh3_128_digest(chunk))

    with ThreadPoolExecutor(threads or available_cores()) as pool:
        list(pool.map(hash_tensor, slots))
    return hashes.digest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it and the Hub records it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_xxh3(path: Path) -> str:
    """The XXH3-128 of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def files_hash(paths: Iterable[Path]) -> str:
    """One hash of files as they are, in order of their names: what identifies an input that is no
    checkpoint."""
    tree = xxhash.xxh3_128()
    for path in sorted(paths, key=lambda path: path.name):
        tree.update(f"{path.name}\0{file_xxh3(path)}\0".encode())
    return f"{FILES_HASH}:{tree.hexdigest()}"
