"""Headers: what a damaged or hostile file looks like, and that safetensors' own library agrees with us."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from soupkit.checkpoint.dtypes import NUMPY_DTYPES
from soupkit.checkpoint.header import parse_header, read_header
from soupkit.checkpoint.tensors import write_tensors
from soupkit.errors import CheckpointError


def write_file(path: Path, entries: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start: int, stop: int, *, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [(stop - start) // 4] if shape is None else shape,
        "data_offsets": [start, stop],
    }


DAMAGED: dict[str, tuple[Any, bytes, int | None, str]] = {
    "truncated data": ({"a": entry(0, 8)}, b"1234", None, "truncated"),
    "header longer than the file": ({"a": entry(0, 4)}, b"1234", 10_000, "in a file of"),
    "header bomb": ({"a": entry(0, 4)}, b"1234", 2**60, "the format allows"),
    "overlapping offsets": ({"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12, None, "overlaps"),
    "gap": ({"a": entry(0, 4), "b": entry(8, 12)}, b"x" * 12, None, "belong to no tensor"),
    "trailing bytes": ({"a": entry(0, 4)}, b"x" * 9, None, "after the last tensor"),
    "wrong dtype": ({"a": entry(0, 4, dtype="F33")}, b"1234", None, "'F33' is not one of"),
    "dtype that is a list": ({"a": entry(0, 4) | {"dtype": ["F32"]}}, b"1234", None, "is not one of"),
    "shape against offsets": ({"a": entry(0, 4, shape=[2])}, b"1234", None, "takes 8 bytes"),
    "negative size": ({"a": entry(0, 4, shape=[-1])}, b"1234", None, "is not a list of sizes"),
    "boolean size": ({"a": entry(0, 4, shape=[True])}, b"1234", None, "is not a list of sizes"),
    "overflowing shape": (
        {"a": entry(0, 4, shape=[2**62, 2**62])},
        b"1234",
        None,
        "no array is of the shape",
    ),
    "reversed offsets": ({"a": entry(0, 4) | {"data_offsets": [4, 0]}}, b"1234", None, "span -4"),
    "three offsets": ({"a": entry(0, 4) | {"data_offsets": [0, 4, 8]}}, b"1234", None, "two positions"),
    "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, b"1234", None, "expected exactly"),
    "duplicate keys": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
        None,
        "stands twice",
    ),
    "not an object": ([1], b"", None, "not a JSON object"),
    "not JSON": (b"{]", b"", None, "not valid"),
    "not UTF-8": (b"\xff\xfe", b"", None, "not valid"),
    "deep nesting": (b'{"a":' + b"[" * 200_000, b"", None, "not valid"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    entries, data, length, message = DAMAGED[case]
    path = write_file(tmp_path / "model.safetensors", entries, data, length=length)
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(path)
    assert str(path) in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_stub_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="too short"):
        read_header(path)


def test_every_dtype_is_written_as_safetensors_reads_it(tmp_path: Path) -> None:
    tensors = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in NUMPY_DTYPES.items()}
    write_tensors(tmp_path, tensors, metadata={"format": "np", "note": "köln"})
    read = read_header(tmp_path / "model.safetensors")
    assert read.metadata == {"format": "np", "note": "köln"}
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert set(file.keys()) == set(tensors)
        for name in ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL"):
            np.testing.assert_array_equal(file.get_tensor(name), tensors[name])


def test_our_file_is_the_file_that_safetensors_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}.weight": rng.normal(size=(i + 1, 3)).astype(np.float32) for i in range(12)}
    tensors |= {"steps": np.array(3), "half": rng.normal(size=5).astype(np.float16)}
    write_tensors(tmp_path, tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
SLOTS = st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), st.lists(st.integers(0, 4), max_size=3))


@given(slots=st.dictionaries(NAMES, SLOTS, max_size=6))
def test_headers_round_trip(
    slots: dict[str, tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = {name: np.zeros(shape, NUMPY_DTYPES[dtype]) for name, (dtype, shape) in slots.items()}
    directory = tmp_path_factory.mktemp("header")
    write_tensors(directory, tensors)
    specs = read_header(directory / "model.safetensors").specs
    assert {name: (spec.dtype, list(spec.shape)) for name, spec in specs.items()} == slots


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_clear_error(raw: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        assert parse_header(raw, Path("x.safetensors"), 8 + len(raw)).specs == {}


def test_bfloat16_arrives_as_itself(tmp_path: Path) -> None:
    values = np.array([1.5, -2.25, np.inf], ml_dtypes.bfloat16)
    write_tensors(tmp_path, {"a": values})
    assert read_header(tmp_path / "model.safetensors").specs["a"].dtype == "BF16"
