"""`soupkit merge trajectory` with many windows and shapes against one uniform merge of the same checkpoints.

    python tests/benchmarks/merge_trajectory.py [--count 20] [--parameters 12500000] [--folder DIR]

Prints seconds, processor seconds and peak memory of `cat` of the inputs, one uniform merge, one decay, and 6
windows × 4 shapes from one read, in the same run. Nothing is asserted: read it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from checkpoints import measure, write_checkpoints

SOUPKIT = [sys.executable, "-m", "soupkit", "merge"]
WINDOWS = ("..", "20%..", "40%..", "50%..", "60%..", "75%..")
SHAPES = ("uniform", "linear", "minus-sqrt", "cosine")


def timed(label: str, command: Sequence[str | Path]) -> float:
    """Run it; print what it took, and return its seconds."""
    before = os.times()
    found, after = measure(command), os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{label}: {found.seconds:.2f} s, {used:.2f} s of the processor, peak {found.megabytes:.0f} MB")
    return found.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--parameters", type=int, default=12_500_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        shapes = {f"layer{number}.weight": (arguments.parameters // 10,) for number in range(10)}
        paths = write_checkpoints(folder / "step", shapes, count=arguments.count, dtype="F32")
        files = [path / "model.safetensors" for path in paths]
        timed("cat", ["sh", "-c", 'cat "$@" > /dev/null', "sh", *files])
        one = ("--no-plots", "--quiet", "--out", folder / "out")
        asked = [word for window in WINDOWS for word in ("--window", window)]
        asked += [word for shape in SHAPES for word in ("--shape", shape)]
        uniform = timed("one uniform merge", [*SOUPKIT, "uniform", *paths, *one[1:]])
        shutil.rmtree(folder / "out")
        timed("one linear decay", [*SOUPKIT, "trajectory", *paths, "--shape", "linear", *one])
        shutil.rmtree(folder / "out")
        every = timed(
            "6 windows × 4 shapes", [*SOUPKIT, "trajectory", *paths, *asked, "--write", "all", *one]
        )
        print(f"24 outputs in {every / uniform:.1f} times one uniform merge")


if __name__ == "__main__":
    main()
