"""Mode connectivity on handwritten digits, in the form of the paper's table (Garipov et al. 2018,
arXiv:1802.10026).

    python tests/benchmarks/curves_digits.py --seeds 3

Two models from independent random weights per seed; the straight line between them, and curves of three
bends. Minimum and maximum over the points of a path of the train loss (with the L2 term) and of the test
error, mean over the seeds ± standard error of that mean. "Aligned": B's units are permuted to fit A's first.
Finished work in --folder is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from soupkit.events import silent
from soupkit.jobs.curves.chain import chain
from soupkit.jobs.curves.evaluate import curve_evaluate
from soupkit.jobs.curves.fit import curve_fit
from soupkit.jobs.training.finetune import finetune
from soupkit.recipe.curve import Chain, CurveEvaluate, CurveFit
from soupkit.recipe.train import Finetune
from soupkit.world import World

DATA = {"data": "digits", "num_train": 1000, "num_held_out": 200, "num_test": 597, "split_seed": 0}
WEIGHT_DECAY = 5e-4
SIZE = 16  # the digits have 8 × 8 pixels
ALIGNED = "aligned "


def cached(out: Path, work: Any) -> dict[str, Any]:
    """What `work` returned when it last ran for `out`, else what it returns now."""
    path = out.with_suffix(".json")
    if not path.is_file():
        result = work()
        path.write_text(json.dumps(result))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def train(out: Path, model: str, seed: int, arguments: argparse.Namespace) -> str:
    """One model from random weights."""
    recipe = Finetune(
        out=out,
        model=f"{model},num_classes=10,img_size={SIZE}",
        optimizer="sgd",
        lr=arguments.lr,
        weight_decay=WEIGHT_DECAY,
        epochs=arguments.epochs,
        batch_size=50,
        seed=seed,
        **DATA,
    )
    cached(out, lambda: finetune(recipe, World(threads=1), silent))
    return str(out)


def paths(folder: Path, seed: int, model: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The metrics of the straight line and of both curves between the models of one seed, as they are and
    aligned."""
    ends = tuple(train(folder / f"model-{2 * seed + k}", model, 2 * seed + k, arguments) for k in range(2))
    found = between(ends, folder, seed, arguments, label="")
    return found | between(
        (ends[0], aligned(ends, folder / f"aligned-{seed}")), folder, seed, arguments, label=ALIGNED
    )


def between(
    ends: tuple[str, ...], folder: Path, seed: int, arguments: argparse.Namespace, *, label: str
) -> dict[str, dict[str, Any]]:
    """The metrics of the straight line and of both curves between two checkpoints."""
    begin = time.perf_counter()
    scoring = {
        "num_points": arguments.num_points,
        "weight_decay": WEIGHT_DECAY,
        "jobs": arguments.jobs,
        **DATA,
    }
    found = {}
    label_path = label.replace(" ", "-")
    line = folder / f"{label_path}line-{seed}"
    found["line"] = cached(line, lambda: chain(Chain(refs=ends, out=line, **scoring), World(), silent))
    for kind in ("bezier", "polychain"):
        fitted, scored = folder / f"{label_path}{kind}-{seed}", folder / f"{label_path}{kind}-{seed}-scores"
        options = {"kind": kind, "epochs": arguments.curve_epochs, "lr": arguments.lr, "batch_size": 50}
        recipe = CurveFit(refs=ends, out=fitted, weight_decay=WEIGHT_DECAY, seed=seed, **options, **DATA)
        cached(fitted, lambda recipe=recipe: curve_fit(recipe, World(threads=1), silent))
        evaluation = CurveEvaluate(curve=str(fitted), out=scored, **scoring)
        found[kind] = cached(scored, lambda e=evaluation: curve_evaluate(e, World(), silent))
    print(f"  {folder.name} seed {seed} {label}{time.perf_counter() - begin:.0f} s", flush=True)
    return {label + name: manifest["metrics"] for name, manifest in found.items()}


def aligned(ends: tuple[str, ...], out: Path) -> str:
    """B, permuted to fit A, as a checkpoint."""
    from soupkit.jobs.align.align import align as align_job
    from soupkit.recipe.align import Align

    result = cached(out, lambda: align_job(Align(refs=ends, out=out, device="cpu"), World(), silent))
    return str(out / result["notes"]["members"][1])


def row(name: str, per_seed: list[dict[str, Any]], places: tuple[str, str]) -> str:
    """min/max of the train loss and of the test error; `places`: the metrics that they are."""
    cells = []
    for split, measure, digits in (("train", "loss", 3), ("test", "err", 2)):
        both = [
            _over_seeds([seed[split][f"{measure}_{place}"]["value"] for seed in per_seed]) for place in places
        ]
        cells.append(" / ".join(f"{mean:.{digits}f} ± {error:.{digits}f}" for mean, error in both))
    return f"| {name} | " + " | ".join(cells) + " |"


def _over_seeds(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["timm:test_resnet", "timm:cifar_vgg_small,batch_norm=True"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--curve-epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--num-points", type=int, default=11)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for model in arguments.models:
            folder = (arguments.folder or Path(temporary)) / model.partition(":")[2]
            folder.mkdir(parents=True, exist_ok=True)
            found = [paths(folder, seed, model, arguments) for seed in range(arguments.seeds)]
            num = found[0]["line"]["test"]["err_max"]["num_examples"]
            print(f"\n{model}, {arguments.seeds} seeds, test n = {num}")
            print("| | min / max train loss | min / max test error, % |\n|---|---|---|")
            print(row("ends", [seed["line"] for seed in found], ("start", "end")))
            for name in found[0]:
                print(row(name, [seed[name] for seed in found], ("min", "max")), flush=True)


if __name__ == "__main__":
    main()
