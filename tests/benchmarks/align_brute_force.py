"""Weight matching against the best of all permutations, on networks with two hidden layers of width at most
6.

    python tests/benchmarks/align_brute_force.py

With one layer's order fixed, the best order of the other is a linear assignment, so trying all orders of the
first gives the true optimum. Prints how often the search reaches it, how much of the possible gain it has on
average, and how often it falls below the identity (never), for unrelated networks and for noisy permuted
copies.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from scipy.optimize import linear_sum_assignment

from soupkit.align.graph.expression import Atom
from soupkit.align.matching.match import match_weights
from soupkit.align.permutation import random_permutation
from soupkit.align.permuted import Permuted
from soupkit.align.spec import Group, PermutationSpec

Tensors = dict[str, np.ndarray]
INPUTS, OUTPUTS = 5, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--widths", type=int, nargs="+", default=[3, 4, 5, 6])
    parser.add_argument("--restarts", type=int, nargs="+", default=[0, 4])
    arguments = parser.parse_args()
    print(
        "| width | networks | restarts | optimal | share of the gain | below the identity "
        "|\n|---|---|---|---|---|---|"
    )
    for width, kind, restarts in itertools.product(
        arguments.widths, ("unrelated", "noisy copy"), arguments.restarts
    ):
        rows = np.array([one(width, kind, restarts, seed) for seed in range(arguments.networks)])
        optimal, share, below = rows.mean(0)
        print(f"| {width} | {kind} | {restarts} | {optimal:.0%} | {share:.1%} | {below:.0%} |", flush=True)


def one(width: int, kind: str, restarts: int, seed: int) -> tuple[bool, float, bool]:
    """Whether the optimum was found, the share of the possible gain, whether the result is below the
    identity."""
    spec = two_layers(width)
    random = np.random.default_rng(seed)
    a, b = (
        {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes(width)}
        for _ in range(2)
    )
    if kind == "noisy copy":
        b = {name: a[name] + 0.7 * b[name] for name in a}
        b = dict(Permuted(b, spec, random_permutation(spec, seed)))
    found = dict(Permuted(b, spec, match_weights(spec, a, b, restarts=restarts).permutation))
    start, reached, best = inner(a, b), inner(a, found), optimum(a, b, width)
    gain = (reached - start) / (best - start) if best > start + 1e-3 else 1.0
    return reached >= best - 1e-4, gain, reached < start - 1e-6


def two_layers(width: int) -> PermutationSpec:
    one_, two = Atom("one", width), Atom("two", width)
    axes = {"1": (one_, Atom(None, INPUTS)), "2": (two, one_), "3": (Atom(None, OUTPUTS), two)}
    return PermutationSpec({name: Group(name, width) for name in ("one", "two")}, axes)


def shapes(width: int) -> list[tuple[str, tuple[int, int]]]:
    return [("1", (width, INPUTS)), ("2", (width, width)), ("3", (OUTPUTS, width))]


def inner(a: Tensors, b: Tensors) -> float:
    return sum(float((a[name].astype(np.float64) * b[name]).sum()) for name in a)


def optimum(a: Tensors, b: Tensors, width: int) -> float:
    """The largest objective over all orders of the first layer, each with the best of the second."""
    first, third = a["1"] @ b["1"].T, a["3"].T @ b["3"]
    best = -np.inf
    for order in itertools.permutations(range(width)):
        second = a["2"] @ b["2"][:, list(order)].T + third
        rows, columns = linear_sum_assignment(second, maximize=True)
        best = max(best, float(second[rows, columns].sum() + first[range(width), list(order)].sum()))
    return best


if __name__ == "__main__":
    main()
