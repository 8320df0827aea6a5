"""Kill commands at random moments: what is there afterwards is whole, and the same command then ends as
undisturbed.

python tests/faults/kills.py --trials 500 --seed 0 [--commands uniform,greedy] [--seconds 600]

One process imports everything and forks a child per trial. The child dies of a signal at a random moment, or
of SIGKILL at a random call of what changes the disk. Exit code 1 where anything is damaged, fails, differs or
is left behind.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import importlib
import io
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch read it
    sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.kill_commands import COMMANDS, KillCommand, make_inputs
from faults.kill_place import Place, files, hidden
from faults.kill_processes import SIGNALS, adopt_orphans, die_at, in_child, orphans, wait

from soupkit.cli.app import run_command_line
from soupkit.commands import COMMANDS as ALL

MODELS = ("soupkit.task.images.models", "sklearn.datasets", "matplotlib.pyplot")
BAD = ("damaged", "rerun failed", "other bits", "litter")
COLUMNS = ("trials", "killed before end", "whole after kill", *BAD, "left in TMPDIR")


class Trials:
    """The trials of one command, and what came of them."""

    def __init__(self, name: str, place: Place) -> None:
        self.name, self.place, self.reference = name, place, place.reference()
        self.counts: collections.Counter[str] = collections.Counter()

    def turn(self) -> tuple[bool, float]:
        """The least is next: each command once, and then for as long as any other."""
        return self.counts["trials"] > 0, (self.counts["trials"] + 1) * self.reference.seconds

    def once(self, draw: random.Random) -> None:
        """One kill, and what follows it."""
        self.place.reset()
        how, code = self._kill(draw)
        self.counts["trials"] += 1
        self.counts["killed before end"] += code != 0
        found = files(self.place.out) if self.place.out.exists() else {}
        whole = found.keys() == self.reference.names
        self.counts["whole after kill"] += whole and code != 0
        if code is None:
            self._bad("damaged", how, "it hangs")
        for kind, why in self._faults(found, whole):
            self._bad(kind, how, why)
        if num := orphans():
            self._bad("litter", how, f"{num} processes")
        self._again(how, whole)

    def _kill(self, draw: random.Random) -> tuple[str, int | None]:
        if draw.random() < 0.5 and self.reference.num_calls:
            number, after = draw.randint(1, self.reference.num_calls), draw.random() < 0.5
            process = self.place.start(self.place.arguments, partial(die_at, number, after=after))
            return f"{'after' if after else 'before'} call {number}", wait(process)
        moment, number = draw.uniform(0, 1.1 * self.reference.seconds), draw.choice(SIGNALS)
        process = self.place.start(self.place.arguments)
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
        return f"{signal.Signals(number).name} at {moment:.3f} s", wait(process)

    def _faults(self, found: dict[str, str], whole: bool) -> Iterator[tuple[str, str]]:
        """What is wrong with an output that a kill left."""
        if found in (self.reference.old, self.reference.same):
            return
        if not whole and not self.place.command.grows:
            yield "damaged", f"{sorted(self.reference.names ^ found.keys())[:5]} are missing or strange"
        elif not self.place.is_verified():
            yield "damaged", f"verify refuses it: {self.place.last_words()}"
        elif other := self.reference.unlike(found, self.place.command.volatile):
            yield "other bits", f"{other[:5]}"

    def _again(self, how: str, whole: bool) -> None:
        """The same command again, as a user would type it; a whole output is refused first, and replaced
        then."""
        place = self.place
        code = place.run(place.arguments)
        if code == 1 and whole and "exists already" in place.last_words():
            code = place.run([*place.arguments, "--overwrite"])
        if code != 0:
            self._bad("rerun failed", how, f"exit code {code}: {place.last_words()}")
            return
        found = files(place.out)
        if found.keys() != self.reference.names:
            self._bad("other bits", how, f"again: files {sorted(self.reference.names ^ found.keys())[:5]}")
        elif other := self.reference.unlike(found):
            self._bad("other bits", how, f"again: {other[:5]}")
        elif found != self.reference.same and not place.is_verified():
            self._bad("other bits", how, f"again: verify refuses it: {place.last_words()}")
        self.counts["left in TMPDIR"] += any((place.folder / "tmp").iterdir())
        left = hidden(place.folder) - set(place.command.keeps)
        if left or orphans():
            self._bad("litter", how, f"{sorted(left)[:5]}")

    def _bad(self, kind: str, how: str, why: str) -> None:
        self.counts[kind] += 1
        print(f"! {self.name}: {kind}, killed {how}: {why}", flush=True)


def table(trials: Sequence[Trials]) -> str:
    """One row per command, and their sum."""
    total: collections.Counter[str] = sum((each.counts for each in trials), collections.Counter())
    counted = [*((each.name, each.counts) for each in trials), ("all", total)]
    rows = [["command", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[name, *(str(counts[column]) for column in COLUMNS)] for name, counts in counted]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def preload(commands: Sequence[KillCommand]) -> None:
    """Import what the commands import, once for all children."""
    jobs = {
        ALL[name].job.partition(":")[0]
        for each in commands
        for name in ALL
        if each.command.startswith(f"{name} ")
    }
    for module in [
        *(MODELS if any(each.models for each in commands) else ()),
        *(("torch",) if any("pickled" in each.command for each in commands) else ()),
        "soupkit.jobs.files.verify",
        *sorted(jobs),
    ]:
        importlib.import_module(module)
    with contextlib.redirect_stdout(io.StringIO()):
        run_command_line(["methods"])  # what every command imports when it runs
    gc.freeze()  # children then share it


def kill(names: Sequence[str], num_trials: int, seed: int, folder: Path, seconds: float) -> list[Trials]:
    """Kill until there were so many trials, or the time is over: the quicker a command, the more of its
    trials."""
    adopt_orphans()
    commands = [COMMANDS[name] for name in names]
    preload(commands)
    inputs = folder / "inputs"
    code = wait(in_child(lambda: make_inputs(inputs, commands), folder / "inputs.log"))
    assert code == 0, (folder / "inputs.log").read_text()
    trials = []
    for name, command in zip(names, commands):
        trials.append(Trials(name, Place(command, inputs, folder / name)))
        print(f"{name}: {trials[-1].reference}", flush=True)
    draw, end = random.Random(seed), time.monotonic() + seconds
    while (num := sum(each.counts["trials"] for each in trials)) < num_trials and time.monotonic() < end:
        min(trials, key=Trials.turn).once(draw)
        if num % 100 == 99:
            print(table(trials), flush=True)
    return trials


def main() -> int:
    """Read the options, kill, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="some of: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        found = kill(options.commands.split(","), options.trials, options.seed, Path(folder), options.seconds)
    print(table(found))
    return int(any(each.counts[kind] for each in found for kind in BAD))


if __name__ == "__main__":
    sys.exit(main())
