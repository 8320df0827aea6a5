"""Scoring 61 points of a curve: soupkit against a plain loop, one point after another.

    python tests/benchmarks/curve_evaluation.py --cores 2

The plain loop is the form of the published scripts: for every point a state dict is combined and loaded,
batch-norm statistics are updated over the training loader, then the loaders of train and test are evaluated;
images are decoded by the loader every time. "in memory" is the same loop over tensors that were decoded and
normalised once. Both use `--cores` threads. soupkit scores held-out too, which the loops do not. CPU seconds
count worker processes, and say more than seconds on a machine that does other work.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.curve.curve import Curve, points
from soupkit.events import silent
from soupkit.jobs.curves.evaluate import curve_evaluate
from soupkit.jobs.curves.fit import curve_fit
from soupkit.jobs.training.finetune import finetune
from soupkit.recipe.curve import CurveEvaluate, CurveFit
from soupkit.recipe.evaluate import Evaluate
from soupkit.recipe.train import Finetune
from soupkit.task.images.task import ImageTask, open_task
from soupkit.task.images.transforms import eval_transform, normalize
from soupkit.world import World

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Decoded(Dataset[tuple[torch.Tensor, int]]):
    """A split whose images are decoded whenever they are asked for."""

    def __init__(self, task: ImageTask, split: str) -> None:
        self.part, self.settings = getattr(task.splits, split), task.settings
        self.transform = eval_transform(task.settings)

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, target = self.part[index]
        return normalize(self.transform(image), self.settings), target


def update_statistics(model: torch.nn.Module, batches: Batches) -> None:
    """Batch-norm statistics over all training images, as torch.optim.swa_utils.update_bn does it."""
    torch.optim.swa_utils.update_bn((images for images, _ in batches), model)
    model.eval()


@torch.no_grad()
def test(model: torch.nn.Module, batches: Batches) -> tuple[float, float]:
    """NLL and error in percent."""
    loss = right = count = 0.0
    for images, targets in batches:
        logits = model(images)
        loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        right += float((logits.argmax(1) == targets).sum())
        count += len(targets)
    return loss / count, 100 * (1 - right / count)


def plain(
    task: ImageTask, bends: list[Checkpoint], curve: Curve, num_points: int, train: Batches, rest: Batches
) -> Any:
    """The loop of the published form."""
    states = [{name: torch.from_numpy(bend[name]) for name in bend} for bend in bends]
    found = []
    for t in points(num_points):
        coefficients = curve.coefficients(t).tolist()
        state = {
            name: sum(c * state[name] for c, state in zip(coefficients, states, strict=True))
            if first.is_floating_point()
            else first
            for name, first in states[0].items()
        }
        task.model.load_state_dict(state)
        update_statistics(task.model, train)
        found.append((*test(task.model, train), *test(task.model, rest)))
    return np.array(found)


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="timm:test_resnet")
    parser.add_argument("--num-points", type=int, default=61)
    parser.add_argument("--num-train", type=int, default=300)
    parser.add_argument("--num-test", type=int, default=300)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    sizes = {"num_train": arguments.num_train, "num_held_out": 100, "num_test": arguments.num_test}
    data = {"data": "digits", "device": "cpu", **sizes}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ends = []
        for seed in range(2):
            out, model = folder / f"model-{seed}", f"{arguments.model},num_classes=10,img_size=32"
            finetune(Finetune(out=out, model=model, epochs=2, lr=3e-3, seed=seed, **data), World(), silent)
            ends.append(str(out))
        curve_fit(CurveFit(refs=tuple(ends), out=folder / "curve", epochs=2, **data), World(), silent)
        seconds: dict[str, tuple[float, float]] = {}
        bends = [Checkpoint(folder / "curve" / f"bend-{j}") for j in range(3)]
        task = open_task(bends[0], Evaluate(refs=("",), **data), World(threads=arguments.cores))
        loaders = [DataLoader(Decoded(task, split), batch_size=128) for split in ("train", "test")]
        kept = [list(loader) for loader in loaders]
        for name, (train, rest) in {"plain loop": loaders, "plain loop, in memory": kept}.items():
            begin, used = time.perf_counter(), cpu()
            expected = plain(task, bends, Curve("bezier", 3), arguments.num_points, train, rest)
            seconds[name] = (time.perf_counter() - begin, cpu() - used)
        for jobs in arguments.jobs:
            os.environ["SOUPKIT_CACHE"] = str(folder / f"cache-{jobs}")
            options = {"num_points": arguments.num_points, "jobs": jobs, **data}
            begin, used = time.perf_counter(), cpu()
            curve_evaluate(
                CurveEvaluate(curve=str(folder / "curve"), out=folder / f"{jobs}", **options), World(), silent
            )
            seconds[f"soupkit, {jobs} processes"] = (time.perf_counter() - begin, cpu() - used)
            with np.load(folder / f"{jobs}" / "curve.npz") as found:
                worst = max(abs(found["te_nll"][1:-1] - expected[1:-1, 2]))
                print(f"largest difference of the test NLL to the plain loop: {worst:.2g}", flush=True)
    print(f"{arguments.num_points} points, {sizes['num_train']} train and {sizes['num_test']} test images")
    first = seconds["plain loop"]
    print("| | seconds | CPU seconds | faster | less CPU |\n|---|---|---|---|---|")
    for name, (wall, busy) in seconds.items():
        print(f"| {name} | {wall:.1f} | {busy:.1f} | {first[0] / wall:.1f} × | {first[1] / busy:.1f} × |")


if __name__ == "__main__":
    main()
