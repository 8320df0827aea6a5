"""Let every file-system call of a command fail, one after another: the result is right, or there is a message
and nothing else.

python tests/faults/failures.py [--commands uniform,ties] [--codes EIO] [--every 7] [--onwards] [--seconds 60]

One process imports everything and forks a child per trial, whose k-th call of the file system ends with the
error; k counts on until the command has fewer calls. --onwards: so do all calls after it, as of a disk that
is gone. Exit code 1 where something is damaged, ends in a traceback, differs or is left behind.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch read it
    sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.failing_calls import CODES, fail_at
from faults.kill_commands import COMMANDS, make_inputs
from faults.kill_place import Place, files, hidden
from faults.kill_processes import in_child, wait
from faults.kills import preload

DEFAULT = ("uniform", "uniform-overwrite", "ties", "ema-glob", "mergekit", "convert", "align", "evaluate")
"""Without report, whose page leaves out what cannot be read of the inputs."""
ADVICE = "is there and whole"
"""What a message says of an output that was published before its folder could be synced."""
COLUMNS = ("calls", "trials", "succeeded", "message", "faults")


class Failures:
    """The trials of one command, and what came of them."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self.place, self.reference = name, place, place.reference()
        self.counts: collections.Counter[str] = collections.Counter()
        self.found: list[str] = []
        place.reset()
        assert wait(place.start(place.arguments, partial(fail_at, 0, 0))) == 0, place.last_words()
        self.counts["calls"] = int(place.log.read_text().split()[-1])

    def once(self, number: int, code: str, *, onwards: bool) -> None:
        """One run of which a call fails, and one after it of which none does."""
        self.place.reset()
        disturb = partial(fail_at, number, CODES[code], onwards=onwards)
        status = wait(self.place.start(self.place.arguments, disturb))
        self.counts["trials"] += 1
        self.counts["succeeded"] += status == 0
        self.counts["message"] += status in (1, 2)
        words = self.place.last_words()
        for fault in (*self._faults(status, words), *self._again()):
            self.counts["faults"] += 1
            self.found.append(f"{self.name}: call {number} {code}: {fault}\n    {words[-700:].strip()}")

    def _faults(self, status: int | None, words: str) -> Iterator[str]:
        out, reference = self.place.out, self.reference
        found = files(out) if out.exists() else {}
        other = sorted(reference.names ^ found.keys()) or reference.unlike(found)
        whole = not other
        if status not in (0, 1, 2) or "Traceback" in words or (status != 0 and "error: " not in words):
            yield f"exit code {status} and no message"
        if status == 0 and not whole:
            yield f"exit code 0, and other files: {other[:5]}"
        grows = self.place.command.grows
        if status != 0 and not grows and found != reference.old and not (whole and ADVICE in words):
            yield f"exit code {status}, and an output: {sorted(found)}"

    def _again(self) -> Iterator[str]:
        """The same command, undisturbed."""
        place, reference = self.place, self.reference
        replaces = place.out.exists() and not place.command.grows and "--overwrite" not in place.arguments
        overwrite = ["--overwrite"] if replaces else []
        if place.run([*place.arguments, *overwrite]) != 0:
            yield f"again: {place.last_words()}"
            return
        found = files(place.out)
        if other := sorted(reference.names ^ found.keys()) or reference.unlike(found):
            yield f"again: other files: {other[:5]}"
        if left := hidden(place.folder) - set(place.command.keeps):
            yield f"again: litter: {sorted(left)[:5]}"


def fail(
    names: Sequence[str],
    codes: Sequence[str],
    folder: Path,
    *,
    every: int,
    last: int,
    onwards: bool,
    seconds: float,
) -> list[Failures]:
    """Every `every`-th call of each command, one after another, until the time is over."""
    commands, inputs, end = [COMMANDS[name] for name in names], folder / "inputs", time.monotonic() + seconds
    preload(commands)
    code = wait(in_child(lambda: make_inputs(inputs, commands), folder / "inputs.log"))
    assert code == 0, (folder / "inputs.log").read_text()
    made = []
    for name, command in zip(names, commands, strict=True):
        made.append(each := Failures(name, Place(command, inputs, folder / name)))
        for number in range(max(1, each.counts["calls"] + 1 - last), each.counts["calls"] + 1, every):
            for code in codes:
                if time.monotonic() < end:
                    each.once(number, code, onwards=onwards)
        print(f"{name}: {dict(each.counts)}", flush=True)
    return made


def main() -> int:
    """Read the options, fail, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", default=",".join(DEFAULT), help="some of: " + ", ".join(COMMANDS))
    parser.add_argument("--codes", default="EIO,ENOSPC")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--last", type=int, default=1 << 30, help="only so many calls, the last ones")
    parser.add_argument("--onwards", action="store_true", help="all later calls fail too")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="failures-") as folder:
        found = fail(
            options.commands.split(","), options.codes.split(","), Path(folder), every=options.every,
            last=options.last,
            onwards=options.onwards, seconds=options.seconds,
        )  # fmt: skip
    rows = [["command", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[each.name, *(str(each.counts[column]) for column in COLUMNS)] for each in found]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print("\n".join(line for each in found for line in each.found))
    return int(any(each.found for each in found))


if __name__ == "__main__":
    sys.exit(main())
