"""Seconds of `soupkit --help` as a process, beside those of Python alone and of importing typer and rich.

    python tests/benchmarks/command_help.py [--repeat 9]

Medians of whole processes, in turns, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python": ["-c", "pass"],
    "import typer, rich": ["-c", "import typer, rich.console"],
    "soupkit --help": ["-m", "soupkit", "--help"],
    "soupkit merge --help": ["-m", "soupkit", "merge", "--help"],
    "soupkit merge uniform --help": ["-m", "soupkit", "merge", "uniform", "--help"],
}


def main() -> None:
    """Run all commands in turns and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_args().repeat
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeat):
        for name, arguments in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begin)
    least = statistics.median(seconds["python"])
    for name, values in seconds.items():
        print(
            f"{name:30} {statistics.median(values):.3f} s  {statistics.median(values) / least:5.1f}× python"
        )


if __name__ == "__main__":
    main()
