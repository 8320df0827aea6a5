"""Calls of the file system that fail: some of every command here, all of them by hand: see failures.py."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit import identity
from soupkit.checkpoint.checkpoint import Checkpoint, _close_all
from soupkit.checkpoint.output import OutputDirectory
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError
from soupkit.manifest import Manifest

SCRIPT = Path(__file__).parent / "failures.py"
TESTS = SCRIPT.parent.parent
# A command whose errors end with exit code 0.
FAULTY = """
import sys
import faults.failures, faults.kill_place as kill_place

plain = kill_place.run_command_line
kill_place.run_command_line = lambda arguments: plain(arguments) and 0
sys.exit(faults.failures.main())
"""


def run(*arguments: str) -> tuple[int, list[list[str]], str]:
    """The exit code of python ARGUMENTS, the rows of the table that it prints, and all that it prints."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    return done.returncode, [[cell.strip() for cell in row] for row in rows], done.stdout


@pytest.mark.slow
def test_some_calls_of_some_commands() -> None:
    """The bits of an undisturbed run, or a message and nothing else; and the same command then as ever."""
    commands = "uniform-overwrite,ema-glob,mergekit"
    code, rows, said = run(str(SCRIPT), "--commands", commands, "--every", "139", "--codes", "EIO")
    assert code == 0, said
    assert [row[0] for row in rows[2:]] == commands.split(",")
    for _, _, trials, succeeded, message, faults in rows[2:]:
        assert int(trials) == int(succeeded) + int(message) > 4
        assert faults == "0"


def test_a_fault_is_seen() -> None:
    code, _, said = run("-c", FAULTY, "--commands", "ties", "--every", "300", "--codes", "ENOSPC")
    assert code == 1
    assert "exit code 0, and other files" in said


def test_companions_that_cannot_be_read_are_not_recorded_as_others(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = save("a", {"w": np.ones(3, np.float32)})
    (made / "tokenizer.json").write_text("{}")
    known = Checkpoint(made).record()

    def broken(_path: Path) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(identity, "_hash_of", broken)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: cannot be read: Input/output error"):
        Checkpoint(made).record()
    assert run_command_line(["merge", "uniform", str(made), "--out", str(made.parent / "out")]) == 1
    assert "tokenizer.json: cannot be read" in capsys.readouterr().err
    assert [path.name for path in made.parent.iterdir()] == ["a"]
    monkeypatch.undo()
    assert Checkpoint(made).record() == known


def test_a_manifest_that_cannot_be_read_is_not_absent(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report without the record was written, with exit code 0."""
    made = save("a", {"w": np.ones(3, np.float32)})
    assert Manifest.read_if_any(made) is None
    assert Manifest.read_if_any(made / "model.safetensors") is None
    stat = Path.stat

    def broken(path: Path, **options: Any) -> os.stat_result:
        if path.name == "soupkit.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", broken)
    assert run_command_line(["report", str(made), "--out", str(made.parent / "page.html")]) == 1
    assert not (made.parent / "page.html").exists()


def test_a_lock_that_does_not_close_is_no_error_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output was there and whole, and the exit code 1."""
    closed = os.close

    def broken(descriptor: int) -> None:
        closed(descriptor)
        if (tmp_path / "out").is_dir():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with OutputDirectory(tmp_path / "out") as directory:
        (directory / "a").touch()
        monkeypatch.setattr("soupkit.checkpoint.output.sync_path", lambda _path: None)
        monkeypatch.setattr(os, "close", broken)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_descriptor_that_does_not_close_is_no_traceback() -> None:
    descriptors = {Path("a"): 1 << 20}
    _close_all(descriptors)
    assert not descriptors
