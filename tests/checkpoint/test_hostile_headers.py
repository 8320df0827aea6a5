"""Headers that are valid JSON and no checkpoint that an array can hold: a message, in linear time. Empty
tensors."""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import soupkit
from soupkit.checkpoint.header import parse_header
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError


def entry(shape: Any, stop: int = 0, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, stop]}


def raw_header(directory: Path, entries: Any, data: bytes = b"") -> str:
    directory.mkdir()
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return str(directory)


HOSTILE = {
    "65 dimensions": {"a": entry([1] * 65, 4)},
    "a huge size beside a zero": {"a": entry([2**62, 0])},
    "a zero before huge sizes": {"a": entry([0, 2**62, 2**62])},
    "300 huge sizes": {"a": entry([2**62] * 300, dtype="U8")},
    "200,000 sizes": {"a": entry([2**62] * 200_000)},
    "200,000 ones": {"a": entry([1] * 200_000, 4)},
    "a product of 2^63 bytes": {"a": entry([2**32, 2**31], 2**63 - 1, "U8")},
    "a dtype of a megabyte": {"a": entry([1], 4, "x" * 200_000)},
    "a name of a megabyte": {"a" * 1_000_000: entry([1], 5)},
    "sizes that are texts of a megabyte": {"a": entry(["x" * 1_000_000] * 3, 4)},
    "an integer of 4000 digits": {"a": entry([10**4000], 4)},
}


@pytest.mark.parametrize("command", ["inspect", "diff", "merge"])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_array_can_be_is_refused(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = raw_header(tmp_path / "c", HOSTILE[name], b"1234")
    arguments = {
        "inspect": ["inspect", made],
        "diff": ["diff", made, made],
        "merge": ["merge", "uniform", made, "--out", str(tmp_path / "o")],
    }[command]
    assert run_command_line(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {made}/model.safetensors: ")
    assert len(message) < 2500


def test_as_many_dimensions_as_numpy_has_are_read(tmp_path: Path) -> None:
    most = raw_header(tmp_path / "c", {"a": entry([1] * 64, 4)}, struct.pack("<f", 3.0))
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        assert soupkit.open_checkpoint(most)["a"].shape == (1,) * 64


def test_a_name_that_stands_twice_is_found_in_linear_time() -> None:
    """Counting every name for every other took minutes of a file of few megabytes."""
    names = ",".join(f'"{number}":{{}}' for number in range(60_000))
    raw = f'{{{names},"59999":{{}}}}'.encode()
    begin = time.process_time()
    with pytest.raises(CheckpointError, match="the key '59999' stands twice"):
        parse_header(raw, Path("x.safetensors"), 8 + len(raw))
    assert time.process_time() - begin < 5


PIPES = {
    "weights": ("c/model.safetensors", ["inspect", "{c}"]),
    "other weights": ("c/other.safetensors", ["merge", "uniform", "{c}", "--out", "{o}"]),
    "an index": ("c/model.safetensors.index.json", ["inspect", "{c}"]),
    "a shard": ("c/model-1.safetensors", ["diff", "{c}", "{c}"]),
    "a manifest": ("c/soupkit.json", ["verify", "{c}"]),
    "a record of an input": ("c/soupkit.json", ["reproduce", "{c}", "--out", "{o}"]),
}


@pytest.mark.parametrize("name", PIPES)
def test_what_is_no_file_is_not_waited_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe that nobody writes into, where a file should be, stopped the command for ever."""
    place, words = PIPES[name]
    made = tmp_path / "c"
    made.mkdir()
    if name == "a shard":
        (made / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    os.mkfifo(tmp_path / place)
    line = [word.format(c=made, o=tmp_path / "o") for word in words]
    assert run_command_line(line) == 1
    assert f"{place}: is no regular file" in capsys.readouterr().err


EMPTY = {"w": np.ones((4, 4), np.float32), "e": np.zeros((0, 3), np.float32), "n": np.zeros((0,), np.int64)}


@pytest.fixture
def pair(save: Any) -> list[str]:
    return [str(save(name, EMPTY | {"w": EMPTY["w"] * value})) for name, value in (("a", 1), ("b", 3))]


def test_empty_tensors_are_read(pair: list[str]) -> None:
    opened = soupkit.open_checkpoint(pair[0])
    assert {name: opened[name].shape for name in opened} == {"w": (4, 4), "e": (0, 3), "n": (0,)}
    assert opened["e"].dtype == np.float32


COMMANDS = {
    "diff": "diff {a} {b}",
    "uniform": "merge uniform {a} {b} --out {out}",
    "weighted": "merge weighted {a} {b} --coefficients 0.5,0.5 --out {out}",
    "slerp": "merge slerp {a} {b} --t 0.5 --out {out}",
    "karcher": "merge karcher {a} {b} --out {out}",
    "ties": "merge ties {b} --base {a} --out {out}",
    "dare": "merge dare-linear {b} --base {a} --out {out}",
    "breadcrumbs": "merge breadcrumbs {b} --base {a} --out {out}",
    "task arithmetic": "merge task-arithmetic {b} --base {a} --out {out}",
    "extract-lora": "extract-lora {b} --base {a} --others save --out {out}",
    "inspect": "inspect {a} --tensors",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_empty_tensors_in_every_command(name: str, pair: list[str], tmp_path: Path) -> None:
    words = [word.format(a=pair[0], b=pair[1], out=tmp_path / "out") for word in COMMANDS[name].split()]
    assert run_command_line(words) == 0
    if name not in ("diff", "extract-lora", "inspect"):
        assert soupkit.open_checkpoint(str(tmp_path / "out"))["e"].shape == (0, 3)
