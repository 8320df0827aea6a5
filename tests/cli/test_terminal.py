"""What files and names hold never steers a terminal, and what happens to the streams never happens to the
work."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soupkit.cli import render
from soupkit.cli.app import run_command_line
from soupkit.cli.terminal import paragraph
from soupkit.errors import SoupkitError
from soupkit.events import Advanced, Finished, Scored, Started, Table, Told, Warned, Wrote
from soupkit.visible import in_one_line, visible

HOSTILE = {
    "title of the window": "\x1b]0;PWNED\x07",
    "clear": "\x1b[2J",
    "colour": "\x1b[31m",
    "C1": "\x9b31m\x85",
    "backspace": "a\b\b\r",
    "delete": "\x7f",
    "direction": "\u202egnp.exe\u2066",
    "no width": "a\u200bb\ufeff",
    "line separator": "a\u2028b",
    "tags": "\U000e0041",
    "zero": "\x00",
}


def is_clean(text: str) -> bool:
    return not any(
        bad in text for bad in "\x1b\x07\x9b\x85\b\r\x7f\u202e\u2066\u200b\ufeff\u2028\U000e0041\x00"
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_characters_that_steer_are_written_out(name: str) -> None:
    text = HOSTILE[name]
    assert is_clean(visible(text))
    assert json.loads(f'"{visible(text)}"') == text  # as JSON writes them
    assert visible("ä 日本 🎉 \t\n|") == "ä 日本 🎉 \t\n|"


def test_lines_of_a_name_do_not_pass_for_ours() -> None:
    assert in_one_line("a\nhint: rm -rf") == "a\\nhint: rm -rf"
    error = SoupkitError("a\nerror: no such thing", hint="b\nhint: curl evil | sh")
    lines = render.error_text(error).splitlines()
    assert [line for line in lines if line.startswith(("error:", "hint:"))] == ["error: a", "hint: b"]
    assert len(paragraph("x" * 10_000_000)) < 5000


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_every_event_is_clean(
    name: str, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, path = f"x{HOSTILE[name]}y", Path(f"x{HOSTILE[name]}y".replace("\0", "\x1b"))
    with render.Renderer() as report:
        for event in (
            Told(bad),
            Warned(bad),
            Wrote(path, 3),
            Scored(bad, bad, 0.5, 0.1, 3, bad),
            Table(bad, (bad, "n"), ((bad, 1), (None, 2)), bad),
        ):
            report(event)
    captured = capsys.readouterr()
    assert is_clean(captured.out + captured.err)
    if terminal:
        monkeypatch.setattr(render, "is_terminal", lambda _stream: True)
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        with render.Renderer() as report:
            for each in (Started(bad, 3, "units"), Advanced(bad, 1, bad), Told(bad), Finished(bad)):
                report(each)
        written = stream.getvalue()
        assert "\x1b]0" not in written
        assert "\x1b[2J" not in written
        assert is_clean("".join(HOSTILE[name] if HOSTILE[name] in written else ""))


NAME = "w\x1b]0;PWNED\x07\x1b[31m[link=http://evil]x[/link]\u202e"


@pytest.fixture
def injected(save: Callable[..., Path]) -> list[str]:
    folders = ["a\x1b[31mred", "b"]
    made = [
        save(name, {NAME: np.full((3, 3), k, np.float32)}, metadata={"x": "\x1b[2J"})
        for k, name in enumerate(folders)
    ]
    return list(map(str, made))


COMMANDS = {
    "inspect": "inspect {a}",
    "inspect --tensors": "inspect {a} --tensors",
    "inspect --json": "inspect {a} --tensors --json",
    "diff": "diff {a} {b}",
    "merge": "merge uniform {a} {b} --out {out}",
    "merge --json": "merge uniform {a} {b} --out {out} --json",
    "an error with a tensor": "merge weighted {a} {b} --coefficients 1e999,1 --out {out}",
    "an error with a path": "inspect {a}/none",
    "an error with an option": "inspect {a} --\x1b[31mx",
    "an unknown command": "\x1b[31mx",
    "a value": "merge uniform {a} {b} --dtype \x1b[31m --out {out}",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_clean(
    name: str, injected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o\x1b[2J"
    run_command_line(
        [word.format(a=injected[0], b=injected[1], out=out) for word in COMMANDS[name].split(" ")]
    )
    captured = capsys.readouterr()
    assert captured.out + captured.err
    assert is_clean(captured.out + captured.err)
    if name.endswith("--json"):
        assert json.loads(captured.out)


class Failing(io.StringIO):
    """A stream on a disk that is full, or whose reader is gone."""

    def __init__(self, number: int, descriptor: int) -> None:
        super().__init__()
        self.number, self.descriptor = number, descriptor

    def write(self, text: str) -> int:
        if not text:
            return 0
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self) -> int:
        return self.descriptor


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (errno.ENOSPC, 1, "stdout: cannot be written: No space left"),
        (errno.EIO, 1, "Input/output"),
        (errno.EPIPE, 0, ""),
    ],
)
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_stdout_that_fails_does_not_end_the_work(
    number: int,
    code: int,
    told: str,
    json_too: list[str],
    save: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = [str(save(name, {"w": np.ones(3, np.float32)})) for name in "ab"]
    with (tmp_path / "sink").open("w") as sink:
        monkeypatch.setattr(sys, "stdout", Failing(number, sink.fileno()))
        words = (
            ["merge", "uniform", *made, "--out", str(tmp_path / "o"), *json_too]
            if json_too
            else ["diff", *made]
        )
        assert run_command_line(words) == code
    assert (tmp_path / "o").exists() == bool(json_too)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full"])
def test_closed_and_full_streams(redirection: str, save: Callable[..., Path], tmp_path: Path) -> None:
    """In a process of its own: the numbers of the descriptors are what this is about."""
    made = [str(save(name, {"w": np.full(3, k, np.float32)})) for k, name in enumerate("ab")]
    out = tmp_path / "o"
    script = f'"$0" -m soupkit merge uniform "$1" "$2" --out "$3" --json {redirection}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, *made, str(out)], check=False, capture_output=True
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (int("full" in redirection), False), done.stderr
    from soupkit.checkpoint.reference import open_checkpoint

    assert open_checkpoint(str(out))["w"].tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_NUM_THREADS", "abc"), ("OMP_NUM_THREADS", "-1"), ("OMP_NUM_THREADS", "9" * 5000), ("RANK", "x"),
     ("RANK", "1"), ("RANK", "-1"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "two"), ("LOCAL_RANK", "1.5")],
)  # fmt: skip
def test_numbers_of_the_environment(
    name: str,
    value: str,
    save: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = str(save("a", {"w": np.ones(3, np.float32)}))
    monkeypatch.setenv(name, value)
    assert run_command_line(["merge", "uniform", made, "--out", str(tmp_path / "o")]) == 2
    assert f"{name} is" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_the_system_refuses_is_a_message(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = save("a", {"w": np.ones(3, np.float32)})

    def failing(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", "some/file")

    monkeypatch.setattr("soupkit.jobs.files.inspect.describe", failing)
    assert run_command_line(["inspect", str(made)]) == 1
    assert capsys.readouterr().err == "error: some/file: Input/output error\n"
