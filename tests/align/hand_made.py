"""Networks with permutation groups written by hand, so that matching is tested without what derives
groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from soupkit.align.graph.expression import Atom, Blocks, Concat
from soupkit.align.permutation import random_permutation
from soupkit.align.spec import Group, Permutation, PermutationSpec

Tensors = dict[str, np.ndarray]


def mlp(*widths: int) -> PermutationSpec:
    """Fully connected: the widths of input, hidden layers and output."""
    names = [None, *(f"hidden{i}" for i in range(1, len(widths) - 1)), None]
    groups = {name: Group(name, size) for name, size in zip(names, widths, strict=True) if name}
    axes = {}
    for i in range(len(widths) - 1):
        out, into = Atom(names[i + 1], widths[i + 1]), Atom(names[i], widths[i])
        axes |= {f"{i}.weight": (out, into), f"{i}.bias": (out,)}
    return PermutationSpec(groups, axes)


def attention(width: int = 24, heads: int = 3, units: int = 4) -> PermutationSpec:
    """A residual stream, and heads on it with Q and K in one order of units and V in another, in each head
    its own."""
    groups = {"stream": Group("stream", width), "heads": Group("heads", heads, "blocks", "heads")}
    for family in ("qk", "v"):
        for j in range(heads):
            groups[f"{family}{j}"] = Group(f"{family}{j}", units, "units", family, ("heads", j))
    qk, v = (Blocks("heads", tuple(Atom(f"{f}{j}", units) for j in range(heads))) for f in ("qk", "v"))
    stream = Atom("stream", width)
    axes = {
        "embed": (stream, Atom(None, 6)),
        "gain": (stream,),
        "qkv": (Concat((qk, qk, v)), stream),
        "proj": (stream, v),
        "position_bias": (Atom(None, 9), Atom("heads", heads)),
        "head": (Atom(None, 5), stream),
    }
    return PermutationSpec(groups, axes)


def dense(growth: int = 4) -> PermutationSpec:
    """Three layers, each reading all before it: concatenated axes."""
    names = ["g0", "g1", "g2"]
    groups = {name: Group(name, growth) for name in names}
    axes = {
        "0": (Atom("g0", growth), Atom(None, 7), Atom(None, 3)),
        "1": (Atom("g1", growth), Concat((Atom(None, 7), Atom("g0", growth))), Atom(None, 3)),
        "2": (
            Atom("g2", growth),
            Concat((Atom(None, 7), Atom("g0", growth), Atom("g1", growth))),
            Atom(None, 3),
        ),
        "out": (Atom(None, 5), Concat(tuple(Atom(name, growth) for name in names))),
    }
    return PermutationSpec(groups, axes)


def recurrent(width: int) -> PermutationSpec:
    """One group on both axes of a matrix: the objective is quadratic in its order."""
    hidden = Atom("hidden", width)
    axes = {"in": (hidden, Atom(None, 3)), "recurrent": (hidden, hidden), "out": (Atom(None, 2), hidden)}
    return PermutationSpec({"hidden": Group("hidden", width)}, axes)


def weights(spec: PermutationSpec, seed: int) -> Tensors:
    """Random tensors of the spec's shapes."""
    random = np.random.default_rng(seed)
    shapes = {name: [axis.size for axis in axes] for name, axes in spec.axes.items()}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def gathered(spec: PermutationSpec, tensors: Mapping[str, np.ndarray], permutation: Permutation) -> Tensors:
    """Every axis taken by the spec's index, in numpy."""
    found = {}
    for name, values in tensors.items():
        for axis in range(values.ndim):
            index = spec.index(name, axis, permutation)
            values = values if index is None else values.take(index, axis)
        found[name] = values
    return found


def hidden_copy(
    spec: PermutationSpec, tensors: Tensors, *, noise: float, seed: int
) -> tuple[Tensors, Permutation]:
    """A noisy copy with its units in another order, and that order."""
    random = np.random.default_rng(seed)
    noisy = {
        n: t + np.float32(noise) * random.standard_normal(t.shape).astype(np.float32)
        for n, t in tensors.items()
    }
    true = random_permutation(spec, seed)
    return gathered(spec, noisy, true), true


def objective(a: Tensors, b: Tensors) -> float:
    """Σ ⟨a, b⟩ in float64."""
    return sum(float((a[name].astype(np.float64) * b[name]).sum()) for name in a)


SPECS = {
    "mlp": mlp(8, 32, 24, 4),
    "attention": attention(),
    "dense": dense(8),
    "recurrent": recurrent(16),
}
"""One of each kind, for tests that hold for all."""
