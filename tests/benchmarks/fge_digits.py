"""Fast Geometric Ensembling against one model and against independent models, at the same number of epochs.

    python tests/benchmarks/fge_digits.py --seeds 3 --budget 40

A budget is that many epochs. Independent: k models of one budget each from random weights (cosine), their
ensemble of softmax. FGE: k runs, each 80 % of a budget at a rate that falls once, then cycles; the ensemble
of all members of the k runs. One model: of k budgets. Mean over the seeds of the test accuracy ± standard
error of that mean; the last column is FGE minus independent, paired by seed. Finished work in --folder is
kept.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soupkit.events import silent
from soupkit.jobs.curves.fge import fge
from soupkit.jobs.judge.ensemble import ensemble
from soupkit.jobs.training.finetune import finetune
from soupkit.recipe.curve import Ensemble, Fge
from soupkit.recipe.train import Finetune
from soupkit.world import World

SIZE = 16  # the digits have 8 × 8 pixels
TRAINING = {"optimizer": "sgd", "weight_decay": 5e-4, "batch_size": 50, "device": "cpu"}


def data(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same examples for all."""
    sizes = {"num_train": arguments.num_train, "num_held_out": 200, "num_test": arguments.num_test}
    return {"data": arguments.data, **sizes}


def train(out: Path, seed: int, epochs: int, arguments: argparse.Namespace, **options: Any) -> Path:
    """One model from random weights."""
    if not out.exists():
        model = f"{arguments.model},num_classes=10,img_size={SIZE}"
        values = TRAINING | {"lr": arguments.lr_1} | data(arguments) | options
        finetune(
            Finetune(out=out, model=model, seed=seed, epochs=epochs, **values),
            World("cpu", threads=1),
            silent,
        )
    return out


def collect(out: Path, seed: int, arguments: argparse.Namespace) -> Path:
    """One run of FGE of one budget: 80 % of it before the cycles."""
    before = round(0.8 * arguments.budget)
    options = {"schedule": "multistep", "milestones": (0.625,), "decay_rate": 0.5}
    base = train(out.with_name(f"{out.name}-base"), seed, before, arguments, **options)
    if not out.exists():
        rates = {"cycle": arguments.cycle, "lr_1": arguments.lr_1, "lr_2": arguments.lr_2}
        values = TRAINING | data(arguments) | rates
        recipe = Fge(base=str(base), out=out, epochs=arguments.budget - before, seed=seed, **values)
        fge(recipe, World("cpu", threads=1), silent)
    return out


def accuracy(refs: Sequence[Path], arguments: argparse.Namespace) -> float:
    """Test accuracy in percent of the ensemble of softmax."""
    recipe = Ensemble(refs=tuple(map(str, refs)), device="cpu", **data(arguments))
    found = ensemble(recipe, World("cpu", threads=1), silent)
    return 100 * float(found["metrics"]["softmax"]["test"]["top1"]["value"])


def one_seed(folder: Path, seed: int, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Accuracies at budgets 1 … of one seed."""
    path = folder / f"seed-{seed}.json"
    if path.is_file():
        found: list[dict[str, float]] = json.loads(path.read_text())
        return found
    begin, rows = time.perf_counter(), []
    numbers = [100 * seed + k for k in range(arguments.budgets)]
    alone = [train(folder / f"alone-{n}", n, arguments.budget, arguments) for n in numbers]
    runs = [collect(folder / f"fge-{n}", n, arguments) for n in numbers]
    for k in range(1, arguments.budgets + 1):
        long = alone[0]
        if k > 1:
            long = train(folder / f"long-{seed}-{k}", numbers[0], k * arguments.budget, arguments)
        scores = {"one model": [long], "independent": alone[:k], "FGE": runs[:k]}
        rows.append({name: accuracy(refs, arguments) for name, refs in scores.items()})
    path.write_text(json.dumps(rows))
    print(f"  seed {seed}: {time.perf_counter() - begin:.0f} s {rows}", flush=True)
    return rows


def mean(values: Sequence[float]) -> str:
    """Mean ± standard error."""
    middle = sum(values) / len(values)
    spread = math.sqrt(sum((value - middle) ** 2 for value in values) / max(1, len(values) - 1) / len(values))
    return f"{middle:.2f} ± {spread:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="timm:test_resnet")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--num-train", type=int, default=300)
    parser.add_argument("--num-test", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=40)
    parser.add_argument("--budgets", type=int, default=3)
    parser.add_argument("--cycle", type=int, default=2)
    parser.add_argument("--lr-1", type=float, default=0.05)
    parser.add_argument("--lr-2", type=float, default=0.005)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = [one_seed(folder, seed, arguments) for seed in range(arguments.seeds)]
    print(
        f"\n{arguments.data}, {arguments.num_train} train, test n = {arguments.num_test}, "
        f"{arguments.seeds} seeds"
    )
    print(
        f"| budgets of {arguments.budget} epochs | one model | independent | FGE | difference "
        f"|\n|---|---|---|---|---|"
    )
    for k in range(arguments.budgets):
        cells = [mean([seed[k][name] for seed in found]) for name in ("one model", "independent", "FGE")]
        difference = mean([seed[k]["FGE"] - seed[k]["independent"] for seed in found])
        print(f"| {k + 1} | {' | '.join(cells)} | {difference} |")


if __name__ == "__main__":
    main()
