"""`kills.py` runs, and sees a fault where there is one. The many trials are run by hand: see there."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "kills.py"
TESTS = SCRIPT.parent.parent
# A page that is written in place, and half of it before anything else.
FAULTY = """
import contextlib, os, sys
import faults.kills, soupkit.jobs.files.report

@contextlib.contextmanager
def written_in_place(path):
    path.write_bytes(b"half")
    os.rename(path, path)
    yield path

soupkit.jobs.files.report.whole_file = written_in_place
sys.exit(faults.kills.main())
"""


def run(*arguments: str) -> tuple[int, list[list[str]]]:
    """The exit code of python ARGUMENTS, and the rows of the table that it prints last."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    return done.returncode, [[cell.strip() for cell in row] for row in rows]


def test_two_trials_of_two_commands() -> None:
    code, rows = run(str(SCRIPT), "--trials", "2", "--commands", "uniform,report")
    assert code == 0, rows
    assert rows[-1][:2] == ["all", "2"]
    assert [row[:2] for row in rows[2:-1]] == [["uniform", "1"], ["report", "1"]]
    assert rows[-1][4:8] == ["0"] * 4


def test_an_output_that_is_not_whole_is_seen() -> None:
    """--seed 8: the first trial is a kill at the second change of the disk, the renaming."""
    code, rows = run("-c", FAULTY, "--trials", "1", "--seed", "8", "--commands", "report")
    assert code == 1, rows
    expected = {"killed before end": "1", "other bits": "1", "rerun failed": "1"}
    assert dict(zip(rows[0], rows[2])).items() >= expected.items()
