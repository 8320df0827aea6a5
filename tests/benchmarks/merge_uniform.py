"""`soupkit merge uniform` as a whole process against the floor: `cat` of the inputs plus `cp` of one, in the
same run.

    python tests/benchmarks/merge_uniform.py [--dtype F32] [--count 8] [--repeats 5] [--folder DIR]

Prints medians, ratios and peak memory for 88 M parameters (ViT-B/32), for half and twice as many ingredients,
and for two checkpoints of 18,600 tiny tensors. Nothing is asserted: read it on a quiet machine.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from checkpoints import Measured, measure, tiny_shapes, vit_b32_shapes, write_checkpoints

SOUPKIT = [sys.executable, "-m", "soupkit"]


def repeated(command: Sequence[str | Path], remove: Path, *, repeats: int) -> Measured:
    """Median seconds and largest peak after one run that warms the cache."""
    runs = []
    for number in range(repeats + 1):
        shutil.rmtree(remove, ignore_errors=True)
        remove.unlink(missing_ok=True) if remove.is_file() else None
        found = measure(command)
        runs += [found] if number else []
    return Measured(statistics.median(run.seconds for run in runs), max(run.megabytes for run in runs))


def floor(paths: Sequence[Path], folder: Path, *, repeats: int) -> float:
    """Seconds of reading all inputs once and writing one."""
    files = [path / "model.safetensors" for path in paths]
    names = " ".join(f"'{file}'" for file in files)
    command = ["sh", "-c", f"cat {names} > /dev/null; cp '{files[0]}' '{folder / 'copy'}'"]
    return repeated(command, folder / "copy", repeats=repeats).seconds


def merge(paths: Sequence[Path], folder: Path, *, repeats: int, threads: int = 0) -> Measured:
    """The whole process."""
    out = folder / "soup"
    options = ["--threads", str(threads)] if threads else []
    return repeated(
        [*SOUPKIT, "merge", "uniform", *paths, "--out", out, "--quiet", *options], out, repeats=repeats
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("F32", "BF16"), action="append")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for dtype in arguments.dtype or ("F32", "BF16"):
            _large(folder, dtype, arguments.count, arguments.repeats)
        tiny = write_checkpoints(folder / "tiny", tiny_shapes(), count=2, dtype="F32")
        found = merge(tiny, folder, repeats=arguments.repeats)
        print(f"2 × 18,600 tiny tensors: {found.seconds:.2f} s, peak {found.megabytes:.0f} MB")
    help_time = repeated([*SOUPKIT, "--help"], Path(name), repeats=arguments.repeats)
    print(f"soupkit --help: {help_time.seconds:.2f} s, peak {help_time.megabytes:.0f} MB")


def _large(folder: Path, dtype: str, count: int, repeats: int) -> None:
    paths = write_checkpoints(folder / dtype, vit_b32_shapes(), count=2 * count, dtype=dtype)
    base = floor(paths[:count], folder, repeats=repeats)
    print(f"{dtype}, {count} × 88 M parameters: floor (cat inputs, cp one) {base:.2f} s")
    for threads in (0, 1):
        found = merge(paths[:count], folder, repeats=repeats, threads=threads)
        label = "all cores" if not threads else "1 thread"
        print(
            f"  merge uniform, {label}: {found.seconds:.2f} s = {found.seconds / base:.2f} × floor, "
            f"peak {found.megabytes:.0f} MB"
        )
    for number in (count // 2, 2 * count):
        found = merge(paths[:number], folder, repeats=1)
        print(f"  {number} ingredients: peak {found.megabytes:.0f} MB")
    shutil.rmtree(folder / dtype)


if __name__ == "__main__":
    main()
