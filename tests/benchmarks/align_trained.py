"""Networks trained apart: barriers naive, aligned, aligned and repaired; and soups of 3 and 5 likewise.

    python tests/benchmarks/align_trained.py vgg-bn vgg resnet vit --folder /tmp/align-trained

Small networks on scikit-learn's digits (1,797 images of 8 × 8, enlarged to 32 × 32), trained from different
seeds: only the task is common to them. Barriers are of pairs (0, 1), (1, 2), …; the ± of one is over the test
examples, that of a mean over the pairs. Everything is kept in the folder and continued from there.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from soupkit.events import silent
from soupkit.jobs.align.align import align
from soupkit.jobs.align.barrier import barrier_job
from soupkit.jobs.judge.evaluate import evaluate
from soupkit.jobs.merge.uniform import merge_uniform
from soupkit.jobs.training.finetune import finetune
from soupkit.manifest import Manifest
from soupkit.recipe.align import Align, Barrier
from soupkit.recipe.evaluate import Evaluate
from soupkit.recipe.merge import MergeUniform
from soupkit.recipe.train import Finetune
from soupkit.world import World

SIZE = "num_classes=10,img_size=32"
WIDE = "layers=(32,0,64,0,128,128,0),head=128,drop_rate=0.0"
NETWORKS = {
    "vgg-bn": (f"timm:cifar_vgg16_bn,{SIZE},{WIDE}", 3e-3, 12),
    "vgg": (f"timm:cifar_vgg16,{SIZE},{WIDE}", 1e-3, 20),
    "resnet": (f"timm:test_resnet,channels=(64,96,96,128),{SIZE}", 3e-3, 12),
    "vit": (f"timm:test_vit,{SIZE},patch_size=8", 2e-3, 40),
}
"""name → (model, learning rate, epochs)"""
DATA: dict[str, Any] = {
    "data": "digits",
    "num_train": 1000,
    "num_held_out": 200,
    "num_test": 500,
    "device": "cpu",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--folder", type=Path, default=Path("align-trained"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--points", type=int, default=11)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--soups", type=int, nargs="*", default=[3, 5])
    parser.add_argument("--by", default="weights")
    parser.add_argument("--universe", default="merge-many")
    parser.add_argument("--rotate", action="store_true", help="turn transformers as well")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    world = World("cpu", arguments.threads)
    for name in arguments.networks:
        models = [train(name, seed, arguments, world) for seed in range(arguments.seeds)]
        barriers(name, models, arguments, world)
        for num in arguments.soups:
            soups(name, models[:num], arguments, world)


def train(name: str, seed: int, arguments: argparse.Namespace, world: World) -> Path:
    """One network from random weights, unless it is there already."""
    out = arguments.folder / name / f"seed-{seed}"
    if not out.exists():
        model, lr, epochs = NETWORKS[name]
        recipe = Finetune(
            model=model,
            lr=lr,
            epochs=epochs,
            batch_size=50,
            seed=seed,
            out=out,
            threads=world.threads,
            **DATA,
        )
        finetune(recipe, world, silent)
    return out


def barriers(name: str, models: list[Path], arguments: argparse.Namespace, world: World) -> None:
    """Per pair and on average: the barrier of the loss and of the error on test."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number, pair in enumerate(itertools.pairwise(models[: arguments.pairs + 1])):
        recipe = Barrier(
            refs=tuple(map(str, pair)),
            by=arguments.by,
            rotate=arguments.rotate,
            num_points=arguments.points,
            threads=world.threads,
            num_batches=4,
            **DATA,
        )
        manifest = barrier_job(recipe, world, silent)
        for line, both in manifest["notes"]["barriers"].items():
            loss, error = both["nll"], both["error"]
            found.setdefault(line, []).append((loss["height"], error["height"]))
            shown = " | ".join(
                f"{each['height']:.3f} ± {each['standard_error']:.3f}" for each in (loss, error)
            )
            print(f"| {name} | pair {number} | {line} | {shown} |", flush=True)
    for line, values in found.items():
        mean, deviation = (
            np.mean(values, 0),
            np.std(values, 0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0,
        )
        shown = " | ".join(
            f"{m:.3f} ± {d:.3f}" for m, d in zip(mean, np.broadcast_to(deviation, 2), strict=True)
        )
        print(f"| {name} | mean of {len(values)} | {line} | {shown} |", flush=True)


def soups(name: str, models: list[Path], arguments: argparse.Namespace, world: World) -> None:
    """Top-1 on test of the mean of independent networks: naive, aligned, aligned and repaired."""
    folder = arguments.folder / name
    aligned = folder / f"aligned-{len(models)}"
    common: dict[str, Any] = {"threads": world.threads, "overwrite": True, "device": "cpu"}
    how = {"by": arguments.by, "rotate": arguments.rotate, "universe": arguments.universe}
    align(Align(refs=tuple(map(str, models)), out=aligned, **how, **common | DATA), world, silent)
    data = {**DATA, **common, "bn_batches": 8}
    made = {
        "naive": MergeUniform(refs=tuple(map(str, models)), out=folder / "naive", bn="refresh", **data),
        "aligned": MergeUniform(refs=(str(aligned),), out=folder / "aligned", **data),
        "aligned, bn": MergeUniform(refs=(str(aligned),), out=folder / "bn", bn="refresh", **data),
        "aligned, repaired": MergeUniform(
            refs=(str(aligned),), out=folder / "repaired", repair="forward", **data
        ),
    }
    for recipe in made.values():
        merge_uniform(recipe, world, silent)
    refs = tuple(str(recipe.out) for recipe in made.values())
    scores = evaluate(Evaluate(refs=refs, split="test", **DATA), world, silent)["metrics"]
    singles = [Manifest.read(model).metrics["test"]["top1"]["value"] for model in models]
    print(f"| {name} | {len(models)} models | mean of singles | {np.mean(singles):.3f} |", flush=True)
    for line, recipe in made.items():
        top1 = scores[str(recipe.out)]["test"]["top1"]
        print(
            f"| {name} | {len(models)} models | {line} | {top1['value']:.3f} ± "
            f"{top1['standard_error']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
