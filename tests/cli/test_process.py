"""The command line as a process: imports, signals, pipes, terminals."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from waiting import HANG

ENVIRONMENT = {
    **{
        name: value
        for name, value in os.environ.items()
        if name not in ("FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR")
    },
    "OMP_NUM_THREADS": "1",
    "TERM": "xterm",
}
FAKE = """
import sys, time
from dataclasses import dataclass
from soupkit.cli.app import main
from soupkit.commands import COMMANDS, Command
from soupkit.events import Started, Table, Told
from soupkit.recipe.fields import option

@dataclass(frozen=True, kw_only=True)
class Fake:
    '''Fake.'''
    how: str = option("", help="how")

def fake(recipe, world, report):
    report(Started("work", 3))
    report(Told("begun"))
    if recipe.how == "sleep":
        time.sleep(600)
    if recipe.how == "bug":
        secret = "hunter2"
        return {}["missing"]
    for number in range(3):
        report(Table("", ("row",), ((str(number) * 100_000,),)))
    report(Told("done"))
    return {"name": "\\udcff"}

COMMANDS["fake"] = Command("__main__:Fake", "__main__:fake")
main()
"""


def soupkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "soupkit", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )


HELPS = (("--help",), ("merge", "--help"), ("merge", "uniform", "--help"), ("--version",))


@pytest.mark.parametrize("arguments", HELPS)
def test_help_imports_neither_torch_nor_numpy(arguments: Sequence[str]) -> None:
    code = (
        "import sys\nfrom soupkit.cli.app import run_command_line\n"
        f"code = run_command_line({list(arguments)!r})\n"
        "print('HEAVY', code, sorted({'torch', 'numpy', 'timm', 'scipy', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY 0 []"


def test_unknown_options_exit_with_2() -> None:
    done = soupkit("merge", "uniform", "--nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No such option")


def test_an_error_of_a_real_job(tmp_path: Path) -> None:
    done = soupkit("merge", "uniform", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: ")
    assert "\n\nhint: " in done.stderr


def test_interrupting_is_130_and_says_so() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FAKE, "fake", "--how", "sleep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_a_bug_keeps_a_plain_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAKE, "fake", "--how", "bug"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith("KeyError: 'missing'")
    assert "hunter2" not in done.stderr
    assert "╭" not in done.stderr


def test_a_reader_that_leaves_ends_the_printing_not_the_work() -> None:
    command = [sys.executable, "-c", FAKE, "fake"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b"begun\ndone\n"
    assert process.returncode == 0


def test_a_name_that_is_no_utf8_can_be_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAKE, "fake", "--json"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert "udcff" in json.loads(done.stdout)["name"].encode("unicode_escape").decode()


def on_terminal(*command: str, **environment: str) -> tuple[int, str]:
    """Run a command on a pseudo-terminal: exit code and everything printed."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, stdout=follower, stderr=follower, stdin=follower, env={**ENVIRONMENT, **environment}
    )
    os.close(follower)
    printed = b""
    try:
        while chunk := os.read(leader, 65536):
            printed += chunk
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    return process.wait(), printed.decode()


@pytest.mark.parametrize("arguments", [("fake",), ("fake", "--help"), ("fake", "--nope")])
def test_no_color_on_a_terminal(arguments: Sequence[str]) -> None:
    _, printed = on_terminal(sys.executable, "-c", FAKE, *arguments, NO_COLOR="1")
    assert printed
    assert "\x1b" not in printed


def test_a_terminal_gets_a_bar_and_its_cursor_back() -> None:
    code, printed = on_terminal(sys.executable, "-c", FAKE, "fake")
    assert code == 0
    assert "work" in printed
    assert printed.rindex("\x1b[?25h") > printed.rindex("\x1b[?25l")
