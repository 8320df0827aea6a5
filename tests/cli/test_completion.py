"""Shell completion, through the variables that typer's scripts set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def complete(line: str, *, shell: str = "bash") -> list[str]:
    words = line.split(" ")
    environment = {**os.environ, "_SOUPKIT_COMPLETE": f"complete_{shell}"}
    environment |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = "import sys; sys.argv[0] = 'soupkit'; from soupkit.cli.app import main; main()"
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert " torch" not in done.stderr
    assert " numpy" not in done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("soupkit ver", {"verify"}),
        ("soupkit merge unif", {"uniform"}),
        ("soupkit merge uniform --max", {"--max-shard-size"}),
        ("soupkit merge greedy --score", {"--score-command", "--score-timeout"}),
        ("soupkit pu", {"pull", "push"}),
        ("soupkit convert --", {"--out", "--strip", "--prefer", "--model", "--ignore"}),
    ],
)
def test_commands_and_options_are_completed(line: str, expected: set[str]) -> None:
    found = set(complete(line))
    assert expected <= found
    if not line.endswith("--"):
        assert found == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(shell: str) -> None:
    assert any("uniform" in word for word in complete("soupkit merge unif", shell=shell))


def test_the_script_can_be_shown(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'soupkit'; from soupkit.cli.app import main; main()"
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, "--show-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "_SOUPKIT_COMPLETE=complete_bash" in done.stdout
