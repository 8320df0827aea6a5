"""Setting TWA up: the streamed Gram matrix against classical Gram–Schmidt on all weights in memory.

    python tests/benchmarks/twa_setup.py --folder /tmp/twa --count 100 --millions 11

Checkpoints are a random walk, as a training run is. Gram–Schmidt is as published: the rows are loaded, and
each is freed of its components along every earlier one, one dot product and one addition at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soupkit.checkpoint.reference import open_references
from soupkit.checkpoint.tensors import write_tensors
from soupkit.soup.blocks import lay_out
from soupkit.soup.gram import gram_matrix
from soupkit.soup.twa import Orthonormal


def write_walk(folder: Path, count: int, num_parameters: int) -> None:
    """`count` checkpoints of one long walk, each of tensors of a million parameters."""
    random = np.random.default_rng(0)
    shape = (1000, 1000)
    names = [f"layers.{i}.weight" for i in range(num_parameters // 10**6)]
    weights = {name: random.standard_normal(shape, np.float32) * 0.03 for name in names}
    for k in range(count):
        for value in weights.values():
            value += random.standard_normal(shape, np.float32) * np.float32(0.001)
        (folder / f"step{k}").mkdir(parents=True)
        write_tensors(folder / f"step{k}", weights)


def gram_route(folder: Path) -> dict[str, Any]:
    """Seconds and memory beyond the imports, by the Gram matrix."""
    checkpoints = open_references([str(folder / "step*")])
    before, start = peak(), time.perf_counter()
    layout = lay_out({name: slot.shape for name, slot in checkpoints[0].slots.items()}, "global")
    gram = gram_matrix(checkpoints, layout)
    coordinates = Orthonormal(gram, np.eye(len(checkpoints) + 1)[-1])
    return {"seconds": time.perf_counter() - start, "bytes": peak() - before, "rank": coordinates.ranks[0]}


def gram_schmidt(folder: Path) -> dict[str, Any]:
    """The same by the published procedure."""
    checkpoints = open_references([str(folder / "step*")])
    before, start = peak(), time.perf_counter()
    rows = torch.stack(
        [
            torch.cat([torch.from_numpy(value).flatten() for value in checkpoint.values()])
            for checkpoint in checkpoints
        ]
    )
    basis = torch.empty_like(rows)
    for i, row in enumerate(rows):
        rest = row.clone()
        for j in range(i):
            rest -= torch.dot(basis[j], row) * basis[j]
        basis[i] = rest / rest.norm()
    return {"seconds": time.perf_counter() - start, "bytes": peak() - before, "rank": len(basis)}


def peak() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Each route in a process of its own; the walk is removed at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/twa-setup"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--millions", type=int, default=11)
    parser.add_argument("--route", choices=["gram", "gram-schmidt"])
    arguments = parser.parse_args()
    if arguments.route:
        found = gram_route(arguments.folder) if arguments.route == "gram" else gram_schmidt(arguments.folder)
        print(json.dumps(found))
        return
    try:
        write_walk(arguments.folder, arguments.count, arguments.millions * 10**6)
        print(f"{arguments.count} checkpoints of {arguments.millions} M parameters, float32")
        seconds = {}
        for route in ("gram", "gram-schmidt"):
            command = [sys.executable, __file__, "--folder", str(arguments.folder), "--route", route]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            seconds[route] = found["seconds"]
            print(
                f"{route:14} {found['seconds']:8.1f} s {found['bytes'] / 1e6:8.0f} MB, rank {found['rank']}",
                flush=True,
            )
        print(f"ratio {seconds['gram-schmidt'] / seconds['gram']:.1f}")
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
