"""Recover a known permutation: B = π(A) + noise, for architectures given by name.

    python tests/benchmarks/align_recovery.py resnet18 vit_tiny_patch16_224 --noise 0 0.5 --seeds 3

Prints, per model and noise (in standard deviations of each tensor): the share of groups recovered, up to
units that no weight can tell apart; the seconds of matching, on the clock and of all cores; the peak memory
of the process.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Mapping

import numpy as np
import torch

from soupkit.align.graph.trace import permutation_spec
from soupkit.align.matching.match import match_weights
from soupkit.align.permutation import compose, random_permutation
from soupkit.align.permuted import Permuted
from soupkit.align.spec import PermutationSpec
from soupkit.task.images.models import build, image_settings, parse_model

MODELS = (
    "resnet18",
    "resnet50",
    "convnext_atto",
    "densenet121",
    "vit_tiny_patch16_224",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
)
Tensors = Mapping[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    head = (
        f"{'groups':>6} {'noise':>5} {'recovered':>9} {'start':>9} {'seconds':>8} {'cpu s':>6} {'peak GB':>7}"
    )
    print(f"{'model':32} {head}")
    for name in arguments.models:
        for noise in arguments.noise:
            for seed in range(arguments.seeds):
                recover(name, noise=noise, seed=seed)


def recover(name: str, *, noise: float, seed: int) -> None:
    """One row of the table."""
    torch.manual_seed(seed)
    described = parse_model(f"timm:{name}")
    model = build(described)
    spec = permutation_spec(model, (torch.randn(2, *image_settings(model, described).input_size),))
    a = {key: value.numpy() for key, value in model.state_dict().items()}
    random = np.random.default_rng(seed)
    noisy = {key: with_noise(value, noise, random) for key, value in a.items()}
    true = random_permutation(spec, seed)
    b = dict(Permuted(noisy, spec, true))
    began, began_cpu = time.perf_counter(), time.process_time()
    match = match_weights(spec, a, b, seed=seed)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    rest = compose(true, match.permutation, spec=spec)
    share = np.mean([is_recovered(spec, a, group, rest[group]) for group in spec.groups])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = (
        f"{len(spec.groups):6} {noise:5.2f} {share:9.1%} {match.start:>9} {seconds:8.1f} {cpu:6.1f} "
        f"{peak:7.2f}"
    )
    print(f"{name:32} {row}", flush=True)


def with_noise(values: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise of `noise` standard deviations of the tensor."""
    if noise == 0 or not np.issubdtype(values.dtype, np.floating):
        return values
    return values + (noise * values.std() * random.standard_normal(values.shape)).astype(values.dtype)


def is_recovered(spec: PermutationSpec, a: Tensors, group: str, rest: np.ndarray) -> bool:
    """Whether a group is back in order, or what is left of its permutation changes no weight of A."""
    if np.array_equal(rest, np.arange(len(rest))):
        return True
    left = Permuted(a, spec, {group: rest})
    return all(np.array_equal(left[name], a[name]) for name, _ in spec.attached(group))


if __name__ == "__main__":
    main()
