"""What share of the training time PAPA's averaging takes: ResNet18, five members, every 10 updates, one
thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/papa_averaging.py

In one run, in turn: updates of a member, the pull over the flat buffer, and a loop over state dicts as in the
published code. Images are 32 × 32; the native stem makes updates cheapest, so its share is the largest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

import soupkit.task.torchvision_ops  # noqa: F401  (first: see there)
from soupkit.task.images.models import build, parse_model
from soupkit.train.population.exchange import Pull
from soupkit.train.population.flat import Flat
from soupkit.train.population.grid import Grid
from soupkit.world import World

N, EVERY, SHARE = 5, 10, 0.01


def state_dict_loop(models: list[torch.nn.Module]) -> None:
    """Average state dicts tensor by tensor, make new ones, load them."""
    states = [model.state_dict() for model in models]
    mean = {name: sum(state[name] for state in states) / N for name in states[0]}
    for model, state in zip(models, states):
        model.load_state_dict({name: (1 - SHARE) * state[name] + SHARE * mean[name] for name in state})


def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> None:
    """One update on random images."""
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()
    optimizer.step()


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=32, help="128 is what --stem small makes of 32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models: list[torch.nn.Module] = [
        build(parse_model("timm:resnet18,num_classes=10")).train() for _ in range(N)
    ]
    plain: list[torch.nn.Module] = [
        build(parse_model("timm:resnet18,num_classes=10")).train() for _ in range(N)
    ]
    pull = Pull(Flat(models, torch.device("cpu")), Grid(World("cpu", rank=0, size=1), N))
    images = torch.randn(args.batch_size, 3, args.size, args.size).contiguous(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    times: dict[str, list[float]] = {"update": [], "flat buffer": [], "state-dict loop": []}
    works: dict[str, Callable[[], None]] = {
        "update": lambda: update(models[0], optimizer, images),
        "flat buffer": lambda: pull.now(SHARE),
        "state-dict loop": lambda: state_dict_loop(plain),
    }
    for number in range(args.rounds + 1):
        for name, work in works.items():
            taken = seconds(work)
            if number:
                times[name].append(taken)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    print(
        f"resnet18 at {args.size} × {args.size}, batch {args.batch_size}, n = {N}, k = {EVERY}, median "
        f"of {args.rounds}"
    )
    for name in ("flat buffer", "state-dict loop"):
        share = medians[name] / (medians[name] + N * EVERY * medians["update"])
        print(f"{name}: {1e3 * medians[name]:.1f} ms, {100 * share:.3f} % of the time")
    print(f"one update of one member: {1e3 * medians['update']:.1f} ms")
    print(f"the loop takes {medians['state-dict loop'] / medians['flat buffer']:.2f} times as long")


if __name__ == "__main__":
    main()
