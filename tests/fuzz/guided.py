"""Coverage-guided fuzzing of the parsers of headers and shard indexes (needs atheris; Linux).

    python tests/fuzz/guided.py header -max_total_time=60
    python tests/fuzz/guided.py index -max_total_time=60

Ends with an error for anything that is neither a result nor a SoupkitError, and for a header that soupkit
accepts and safetensors refuses. Options are libFuzzer's.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np
import safetensors

with atheris.instrument_imports(include=["soupkit", "json"]):
    from soupkit.checkpoint.header import parse_header
    from soupkit.checkpoint.layout import read_layout
    from soupkit.checkpoint.tensors import write_tensors
    from soupkit.errors import CheckpointError, SoupkitError

SEEDS = {
    "header": [
        b'\x04\x00{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'\x06\x00{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}',
    ],
    "index": [b'{"metadata":{"total_size":12},"weight_map":{"a":"shard.safetensors"}}'],
}


def header(data: bytes) -> None:
    """Two bytes say how much data follows the header, the rest is the header."""
    if len(data) < 2:
        return
    (size,) = struct.unpack("<H", data[:2])
    raw = data[2:]
    try:
        found = parse_header(raw, Path("x.safetensors"), 8 + len(raw) + size)
    except CheckpointError:
        return
    theirs = safetensors.deserialize(struct.pack("<Q", len(raw)) + raw + bytes(size))
    assert {name for name, _ in theirs} == set(found.specs)


def index_in(directory: Path) -> None:
    """A directory with one good shard, whose index is made of the input."""
    write_tensors(directory, {"a": np.ones(3, np.float32)}, file_name="shard.safetensors")
    path = directory / "model.safetensors.index.json"

    def index(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read_layout(directory)
        except SoupkitError:
            return
        assert json.loads(data)["weight_map"] == {"a": "shard.safetensors"}

    globals()["index"] = index


def main() -> None:
    """Fuzz the target that the first argument names."""
    target = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS[target]):
            (corpus / str(number)).write_bytes(seed)
        Path(folder, "checkpoint").mkdir()
        index_in(Path(folder, "checkpoint"))
        atheris.Setup([*sys.argv, f"-artifact_prefix={folder}/", str(corpus)], globals()[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
