"""The content hash: of the weights, not of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import BLOCK, content_hash, file_sha256, file_xxh3

Save = Callable[..., Path]


def by_hand(tensors: dict[str, np.ndarray], dtypes: dict[str, str]) -> str:
    tree = b""
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        tree += f"{name}\0{dtypes[name]}\0{list(tensors[name].shape)}\0".encode()
        for start in range(0, flat.size, BLOCK):
            tree += xxhash.xxh3_128_digest(flat[start : start + BLOCK].tobytes())
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(tree)}"


def test_it_is_the_tree_that_the_docstring_defines(save: Save) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "big": rng.normal(size=(3, BLOCK // 2)).astype(np.float32),
        "n": np.array(7),
        "empty": np.zeros((0, 2)),
    }
    expected = by_hand(tensors, {"big": "F32", "n": "I64", "empty": "F64"})
    assert content_hash(Checkpoint(save("one", tensors))) == expected
    assert content_hash(Checkpoint(save("many", tensors, max_shard_bytes=100)), threads=3) == expected
    assert content_hash(dict(reversed(tensors.items()))) == expected


def test_it_sees_every_change() -> None:
    base = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(1, np.float32)}
    seen = {content_hash(base)}
    for change in (
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.zeros((2, 3), np.int32)},
        {"a": np.full((2, 3), -0.0, np.float32)},
        {"c": np.zeros(1, np.float32)},
    ):
        digest = content_hash(base | change)
        assert digest not in seen
        seen.add(digest)


def test_files_are_hashed_as_the_usual_tools_do(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"soup" * 1_000_000)
    assert file_sha256(path) == hashlib.sha256(b"soup" * 1_000_000).hexdigest()
    assert file_xxh3(path) == xxhash.xxh3_128_hexdigest(b"soup" * 1_000_000)
