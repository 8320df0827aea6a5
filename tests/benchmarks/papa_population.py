"""PAPA against independent members on scikit-learn's digits: the same models, data order and compute.

    OMP_NUM_THREADS=1 python tests/benchmarks/papa_population.py --out runs/papa-study --seeds 1,2,3

Finished runs are kept, and an unfinished one continues, so it may be stopped at any time. The settings were
chosen on held-out data of seed 0 (--split held_out shows those); test data only report.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from soupkit.events import silent
from soupkit.jobs.training.population import train_population
from soupkit.manifest import Manifest
from soupkit.recipe.population import TrainPopulation
from soupkit.world import World

ROWS = {
    "mean": "mean member",
    "best": "best member (by held-out)",
    "ensemble-logits": "ensemble of logits",
    "average": "average soup",
    "greedy": "greedy soup",
}


def folder(args: argparse.Namespace, method: str, seed: int) -> Path:
    """Where a run of these settings lies."""
    pulls = f"-{args.decay:g}-{args.average_every}" if method == "papa" else ""
    merges = f"-{args.merge_every}" if method not in ("papa", "none") else ""
    return Path(args.out / f"{method}{pulls}{merges}-{seed}")


def settings(args: argparse.Namespace, method: str, seed: int) -> TrainPopulation:
    """One population; the split differs between seeds, so that seeds are independent repetitions."""
    recipe = TrainPopulation(
        out=folder(args, method, seed), model="timm:test_resnet,img_size=32", data="digits",
        num_train=args.num_train, num_held_out=300, split_seed=seed, seed=seed, num_members=5,
        epochs=args.epochs, batch_size=32, lr=args.lr,
        mixup=(0.0, 0.5, 1.0), label_smoothing=(0.0, 0.05, 0.1), crop_scale=(0.7, 1.0), method="none",
        device="cpu",
        save_minutes=1.0, bn="average",
    )  # fmt: skip
    if method == "none":
        return recipe
    if method != "papa":
        return dataclasses.replace(recipe, method=method, merge_every=args.merge_every)
    return dataclasses.replace(recipe, method="papa", decay=args.decay, average_every=args.average_every)


def accuracies(result: dict[str, Any], split: str) -> dict[str, float]:
    """Of one run: the rows of the table."""
    metrics = result["metrics"]
    best = max(result["notes"]["members"], key=lambda name: metrics[name]["held_out"]["top1"]["value"])
    return {row: metrics[best if row == "best" else row][split]["top1"]["value"] for row in ROWS}


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--methods", default="none,papa")
    parser.add_argument("--split", default="test", choices=["held_out", "test"])
    parser.add_argument("--num-train", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--average-every", type=int, default=5)
    parser.add_argument("--merge-every", type=int, default=5)
    args = parser.parse_args()
    seeds, methods = [int(seed) for seed in args.seeds.split(",")], args.methods.split(",")
    found: dict[str, dict[int, dict[str, float]]] = {method: {} for method in methods}
    for seed in seeds:
        for method in methods:
            result = train_population(settings(args, method, seed), World("cpu", threads=1), silent)
            found[method][seed] = accuracies(result, args.split)
            seconds = max(manifest.notes["seconds"] for manifest in members(folder(args, method, seed)))
            line = "  ".join(f"{row} {value:.4f}" for row, value in found[method][seed].items())
            last = result["notes"]["history"]["similarity"][-1]
            print(f"seed {seed} {method}: {line}  cosine {last['cosine']:.3f}  {seconds:.0f} s", flush=True)
    print(f"\n{args.split}, mean over {len(seeds)} seeds ± standard error over seeds")
    for row, shown in ROWS.items():
        cells = [_with_error([found[method][seed][row] for seed in seeds]) for method in methods]
        pairs = [found[methods[-1]][seed][row] - found[methods[0]][seed][row] for seed in seeds]
        print(f"| {shown} | {' | '.join(cells)} | {_with_error(pairs, sign='+')} |")


def members(out: Path) -> list[Manifest]:
    """The manifests of a population's members."""
    return [Manifest.read(path) for path in sorted(out.glob("member-*"))]


def _with_error(values: list[float], *, sign: str = "") -> str:
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{100 * np.mean(values):{sign}.2f} ± {100 * error:.2f}"


if __name__ == "__main__":
    main()
