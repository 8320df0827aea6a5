"""What an EMA costs per update: soupkit's Averaging against torch's AveragedModel, both in one run.

    python tests/benchmarks/ema_cost.py [--models resnet18 vit_tiny_patch16_224 mobilenetv3_large_100]
    [--device cpu]

Rounds alternate between the two, so that both see the same machine; medians of the rounds, and their ratio.
"average": batch-norm statistics averaged too (use_buffers=True); "copy": copied (use_buffers=False). "step"
is one forward, backward and SGD step on two images, for scale.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import soupkit.task.torchvision_ops  # noqa: F401  (first: see there)

# isort: split
import timm
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from soupkit.merge.running import Ema
from soupkit.train.averaging import Averaging

MODELS = ("resnet18", "vit_tiny_patch16_224", "mobilenetv3_large_100")
DECAY = 0.999


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Per call, over some calls."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def compare(
    works: Mapping[str, Callable[[], object]], *, rounds: int, repeats: int, device: torch.device
) -> None:
    """Print medians in microseconds and the ratio of the first to the second."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            times[name].append(seconds(work, repeats, device))
    medians = {
        name: statistics.median(values[1:]) for name, values in times.items()
    }  # the first round warms up
    ours, theirs = list(medians.values())[:2]
    shown = "  ".join(f"{name} {1e6 * value:8.0f} us" for name, value in medians.items())
    print(f"    {shown}  ratio {ours / theirs:.2f}")


def measure(name: str, *, rounds: int, repeats: int, device: torch.device) -> None:
    """All comparisons for one model."""
    model = timm.create_model(name, num_classes=10).to(device).train()
    number = sum(parameter.numel() for parameter in model.parameters())
    print(f"{name}: {number / 1e6:.1f} M parameters, {len(list(model.parameters()))} tensors")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    image = torch.randn(2, 3, 224, 224, device=device)

    def step() -> None:
        optimizer.zero_grad()
        model(image).square().mean().backward()
        optimizer.step()

    print(f"    step {1e6 * seconds(step, 3, device):.0f} us (batch of 2)")
    for buffers in ("average", "copy"):
        ours = Averaging(model, Ema(DECAY), buffers=buffers)  # type: ignore[arg-type]
        function = get_ema_multi_avg_fn(DECAY)
        theirs = AveragedModel(model, multi_avg_fn=function, use_buffers=buffers == "average")
        works: dict[str, Callable[[], object]] = {
            f"soupkit {buffers:7}": ours.update,
            "torch": lambda theirs=theirs: theirs.update_parameters(model),  # type: ignore[misc]
        }
        compare(works, rounds=rounds, repeats=repeats, device=device)
        check(ours, theirs)


def check(ours: Averaging, theirs: AveragedModel) -> None:
    """Both moved towards the same weights, so by now they hold the same."""
    wanted = dict(theirs.module.named_parameters())
    found = ours.tensors()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads; medians of "
        f"{options.rounds} rounds"
    )
    for name in options.models:
        measure(name, rounds=options.rounds, repeats=options.repeats, device=torch.device(options.device))


if __name__ == "__main__":
    main()
