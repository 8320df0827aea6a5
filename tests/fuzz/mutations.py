"""Feeds every parser of texts with mutations of valid samples.

    python tests/fuzz/mutations.py --executions 200000 --seed 0 [--parsers header,index] [--seconds 60]

A finding is an exception that is no SoupkitError, an input that takes more than two seconds of the processor,
or an archive that gives other values than torch does. Prints what became of the inputs of each parser, and
the first input and traceback of each kind of finding; ends with 1 when there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.parsers import PARSERS, Parser

from soupkit.errors import SoupkitError

MOST_SECONDS = 2.0
"""Of the processor, so that a busy machine makes no findings."""


@dataclass
class Outcome:
    """What became of the inputs of one parser; findings: the first of each kind, with its input."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    slowest: float = 0.0

    def found(self, kind: str, given: object, text: str) -> None:
        """Count a finding, and keep the first of its kind."""
        self.counts["findings"] += 1
        self.findings.setdefault(kind, f"{given!r:.1500}\n{text}")


def execute(parser: Parser, rng: Random, outcome: Outcome) -> None:
    """Draw one input and read it."""
    given = parser.draw(rng)
    began = time.process_time()
    outcome.counts["executions"] += 1
    try:
        parser.read(given)
        outcome.counts["accepted"] += 1
    except SoupkitError as error:
        outcome.counts["refused"] += 1
        str(error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome.found(
            f"{type(error).__name__} {Path(frame.filename).name}:{frame.lineno}",
            given,
            traceback.format_exc(),
        )
    took = time.process_time() - began
    outcome.seconds += took
    outcome.slowest = max(outcome.slowest, took)
    if took > MOST_SECONDS:
        outcome.found("slow", given, f"took {took:.1f} s")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In a temporary folder with a cache of its own, without the network."""
    before = Path.cwd()
    kept = {name: os.environ.get(name) for name in ("SOUPKIT_CACHE", "HF_HUB_OFFLINE")}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ |= {"SOUPKIT_CACHE": str(Path(folder, "cache")), "HF_HUB_OFFLINE": "1"}
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
            for name, value in kept.items():
                os.environ.pop(name, None)
                os.environ |= {} if value is None else {name: value}


def fuzz(name: str, executions: int, seed: int, *, seconds: float = float("inf")) -> Outcome:
    """Run one parser so many times, or so long."""
    outcome, rng, began = Outcome(), Random(f"{seed} {name}"), time.monotonic()
    with alone():
        while outcome.counts["executions"] < executions and time.monotonic() - began < seconds:
            execute(PARSERS[name], rng, outcome)
    return outcome


def main() -> int:
    """Run the parsers that are asked for, by their shares of the executions and of the seconds."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--executions", type=int, default=20_000, help="of all parsers together")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--parsers", default=",".join(PARSERS))
    options.add_argument(
        "--seconds", type=float, default=float("inf"), help="of all parsers together, at most"
    )
    given = options.parse_args()
    names = given.parsers.split(",")
    total, failed = sum(PARSERS[name].share for name in names), False
    columns = ("executions", "refused", "accepted", "findings")
    print(
        f"{'parser':<14}",
        *(f"{column:>10}" for column in columns),
        f"{'cpu s':>8} {'slowest':>8}",
        flush=True,
    )
    for name in names:
        part = -(-given.executions * PARSERS[name].share // total)
        outcome = fuzz(name, part, given.seed, seconds=given.seconds / len(names))
        cells = (f"{outcome.counts[column]:>10}" for column in columns)
        print(f"{name:<14}", *cells, f"{outcome.seconds:>8.1f} {outcome.slowest:>8.3f}", flush=True)
        for kind, text in outcome.findings.items():
            failed = True
            print(f"\n--- {name}: {kind}\n{text.encode('ascii', 'backslashreplace').decode()}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
