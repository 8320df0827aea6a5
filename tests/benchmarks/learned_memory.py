"""Peak memory and seconds per step of learned soups over many ViT-B/32-sized checkpoints, against the memory
plan.

    python tests/benchmarks/learned_memory.py --folder /tmp/vit --count 72

Checkpoints are one random ViT-B/32 plus small perturbations, written as bfloat16 (176 MB each) and removed at
the end. Each row is a process of its own: it loads the directions, takes a few steps on random labels, and
reports its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROWS = (
    ("mehl", "float32", 18),
    ("mehl", "bfloat16", 18),
    ("mehl", "int8", 18),
    ("mehl", "bfloat16", 72),
    ("mehl", "int8", 72),
    ("learned", "int8", 72),
)
MODEL = "timm:vit_base_patch32_224,num_classes=10"


def write_population(folder: Path, count: int) -> None:
    """Random weights of MODEL, and `count` copies with rolled noise of 1 % of each tensor's size."""
    import ml_dtypes
    import numpy as np
    import torch

    import soupkit.task.torchvision_ops  # noqa: F401
    from soupkit.checkpoint.tensors import write_tensors
    from soupkit.task.images.models import arrays, build, parse_model, write_config

    torch.manual_seed(0)
    spec = parse_model(MODEL)
    model = build(spec)
    weights = arrays(model)
    noise = np.random.default_rng(0).standard_normal(1 << 24, np.float32)
    for k in range(count):
        directory = folder / f"model-{k:02d}"
        directory.mkdir(parents=True)
        perturbed = {}
        for number, (name, value) in enumerate(weights.items()):
            start = (7919 * k + 104729 * number) % (noise.size - value.size)
            scale = 0.01 * float(value.std() or 1.0)
            moved = value + scale * noise[start : start + value.size].reshape(value.shape)
            perturbed[name] = moved.astype(ml_dtypes.bfloat16)
        write_tensors(directory, perturbed)
        write_config(spec, model, directory)


def measure(folder: Path, method: str, form: str, num: int, batch_size: int) -> None:
    """In a process of its own: a few steps; prints one line of JSON."""
    import numpy as np

    from soupkit.checkpoint.reference import open_references
    from soupkit.events import silent
    from soupkit.recipe.soup import MergeLearned, MergeMehl
    from soupkit.soup.learned import Softmax
    from soupkit.soup.mehl import HyperPlane
    from soupkit.stages.learning.learning import begin, learn, settings_of
    from soupkit.stages.learning.search import open_search
    from soupkit.world import World

    data = {"data": "digits", "num_train": 20, "num_held_out": 3 * batch_size, "num_test": 20}
    options = {
        "resident": form,
        "epochs": 1,
        "batch_size": batch_size,
        "pass_size": batch_size,
        "bn": "average",
    }
    kind = MergeMehl if method == "mehl" else MergeLearned
    recipe = kind(refs=(str(folder),), out=folder.parent / "never-written", device="cpu", **data, **options)
    if method == "mehl":
        recipe = MergeMehl(**{**vars(recipe), "model_batch": num})
    checkpoints = open_references([str(folder / "model-*")])
    search = open_search(recipe, checkpoints, World("cpu"), silent, command=method, together=method != "mehl")
    model = begin(search)
    rows = list(range(num))
    center = np.zeros((len(checkpoints), search.layout.num_blocks))
    center[rows] = 1 / num
    start = time.perf_counter()
    space = search.subspace(center, rows)
    loaded = time.perf_counter()
    make = (
        (lambda: HyperPlane(space.norms))
        if method == "mehl"
        else lambda: Softmax(num, search.layout.num_blocks)
    )
    learn(search, model, space, make, settings_of(recipe, search.memory))
    stepped = time.perf_counter()
    model.backward(search.examples.chunks([np.arange(batch_size)]), num_examples=batch_size)
    done = time.perf_counter()
    search.journal.remove()
    found = {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "plan": search.memory.num_bytes,
        "load": loaded - start,
        "step": (stepped - loaded) / 3.34,  # three steps, and one more point at the end
        "pass": done - stepped,
    }
    print(json.dumps(found))


def main() -> None:
    """Write the population, measure every row, remove it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/learned-memory"))
    parser.add_argument("--count", type=int, default=72)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--row", nargs=3, metavar=("METHOD", "FORM", "NUM"))
    parser.add_argument("--only", type=int, nargs="*", default=list(range(len(ROWS))))
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    if arguments.row:
        method, form, num = arguments.row
        measure(arguments.folder, method, form, int(num), arguments.batch_size)
        return
    try:
        if not arguments.folder.exists():
            write_population(arguments.folder, arguments.count)
            os.sync()
        if arguments.only:
            print(f"{arguments.count} checkpoints of ViT-B/32, {arguments.batch_size} examples per step")
            print(f"{'':30} {'peak GB':>8} {'plan GB':>8} {'load s':>8} {'s/step':>8} {'of it model':>12}")
        for number in arguments.only:
            method, form, num = ROWS[number]
            num = min(num, arguments.count)
            row = [method, form, str(num)]
            command = [sys.executable, __file__, "--folder", str(arguments.folder), "--row", *row]
            done = subprocess.run(
                [*command, "--batch-size", str(arguments.batch_size)],
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{method + ', ' + str(num) + ' as ' + form:30} {found['peak'] / 1e9:8.2f} "
                f"{found['plan'] / 1e9:8.2f} {found['load']:8.1f} {found['step']:8.2f} {found['pass']:12.2f}",
                flush=True,
            )
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
