"""An input that is rewritten, cut or replaced while a command reads it: an error, and nothing is left."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.checkpoint.tensors import TensorFiles
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError


def weights(seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {f"layer{number}.weight": draw.standard_normal((8, 8), np.float32) for number in range(4)}


@pytest.fixture
def pair(save: Callable[..., Path]) -> tuple[Path, Path]:
    return save("a", weights(0)), save("b", weights(1))


def later(status: os.stat_result) -> tuple[int, int]:
    """A time that no clock's coarseness takes for the old one."""
    return status.st_atime_ns, status.st_mtime_ns + 1_000_000_000


def rewrite(file: Path) -> None:
    """Other bytes in the same file, of the same size."""
    content = bytearray(file.read_bytes())
    content[-64:] = b"\x11" * 64
    before = file.stat()
    with file.open("r+b") as there:
        there.write(content)
    os.utime(file, ns=later(before))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 128)


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)


COMMANDS = {
    "uniform": "merge uniform {a} {b}",
    "weighted": "merge weighted {a} {b} --coefficients 0.3,0.7",
    "slerp": "merge slerp {a} {b} --t 0.5",
    "karcher": "merge karcher {a} {b}",
    "ties": "merge ties {b} --base {a}",
    "task arithmetic": "merge task-arithmetic {b} --base {a}",
    "ema": "merge ema {a} {b} --decay 0.5",
    "trajectory": "merge trajectory {a} {b} --shape uniform --shape linear --write all",
    "interpolate": "merge interpolate {a} {b} --at 0,0.5 --write all",
    "extract-lora": "extract-lora {b} --base {a}",
}


@pytest.mark.parametrize("change", [rewrite, cut, replace])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_written_of_an_input_that_changes(
    command: str,
    change: Callable[[Path], None],
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write, done = TensorFiles.write, []

    def changing(files: TensorFiles, name: str, start: int, values: Any) -> None:
        if not done:
            done.append(change(pair[1] / "model.safetensors"))
        write(files, name, start, values)

    monkeypatch.setattr(TensorFiles, "write", changing)
    words = [word.format(a=pair[0], b=pair[1]) for word in COMMANDS[command].split()]
    assert run_command_line([*words, "--out", str(tmp_path / "out"), "--threads", "1"]) == 1
    assert done
    assert "b/model.safetensors: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_every_read_notices(pair: tuple[Path, Path]) -> None:
    opened = open_checkpoint(str(pair[0]))
    opened["layer0.weight"]
    rewrite(pair[0] / "model.safetensors")
    with pytest.raises(CheckpointError, match="was replaced, changed or removed while it was read") as caught:
        opened["layer1.weight"]
    assert caught.value.hint == "run it again"


def test_an_input_that_is_removed_is_read_to_its_end(pair: tuple[Path, Path]) -> None:
    """Its bytes stay while they are held, so that nothing is torn."""
    opened: Checkpoint = open_checkpoint(str(pair[0]))
    opened["layer0.weight"]
    (pair[0] / "model.safetensors").unlink()
    assert np.array_equal(opened["layer3.weight"], weights(0)["layer3.weight"])
