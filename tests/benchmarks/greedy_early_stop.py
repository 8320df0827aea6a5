"""Exact early stop in greedy soups: the same picks, and the share of images that the trials evaluate.

    python tests/benchmarks/greedy_early_stop.py soupkit-demo/sweep --num-train 100 --num-held-out 700
    --split-seed 0

Runs `merge greedy` with and without early stop, for both rules of acceptance, each with an empty cache.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from soupkit.events import silent
from soupkit.jobs.soups.greedy import merge_greedy
from soupkit.recipe.merge import MergeGreedy
from soupkit.world import World


def timed(arguments: argparse.Namespace, **options: Any) -> tuple[dict[str, Any], float]:
    """One greedy soup with an empty cache: its manifest and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SOUPKIT_CACHE"] = folder
        recipe = MergeGreedy(
            refs=(arguments.sweep,),
            out=Path(folder, "soup"),
            data="digits",
            num_train=arguments.num_train,
            num_held_out=arguments.num_held_out,
            split_seed=arguments.split_seed,
            **options,
        )
        begin = time.perf_counter()
        manifest = merge_greedy(recipe, World(), silent)
        return manifest, time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep")
    parser.add_argument("--num-train", type=int, default=100)
    parser.add_argument("--num-held-out", type=int, default=700)
    parser.add_argument("--split-seed", type=int, default=0)
    arguments = parser.parse_args()
    timed(arguments)  # imports and page cache
    for accept in ("ge", "gt"):
        full, seconds = timed(arguments, accept=accept, early_stop=False)
        early, fewer = timed(arguments, accept=accept, early_stop=True)
        same = full["notes"]["picks"] == early["notes"]["picks"]
        trials = early["trace"][1:]
        rejected = [step["num_evaluated"] for step in trials if not step["accepted"]]
        share = sum(rejected) / max(1, len(rejected)) / arguments.num_held_out
        print(
            f"accept {accept}: picks {len(early['notes']['picks'])} of {len(trials) + 1}, the same: {same}; "
            f"trials evaluated {early['notes']['share_of_trial_examples_evaluated']:.0%} of their images, "
            f"rejected ones {share:.0%}; whole command {fewer:.2f} s against {seconds:.2f} s"
        )


if __name__ == "__main__":
    main()
