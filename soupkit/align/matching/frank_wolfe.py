"""Frank–Wolfe: all models and all groups matched at once, through the inside of the permutations' convex
hull.

C2M3 (Crisostomi, Fumero, Baieri, Bernard, Rodolà 2024, arXiv:2405.17897, section 3): every model p gets one
permutation into a common universe, so that matches are consistent along every cycle of models, and Σ_{p<q}
⟨π_p(θ_p), π_q(θ_q)⟩ is raised over means of permutations: towards the vertex that the gradient points to, by
the step that is best on the line. Here a vertex is a permutation of everything, heads with the units inside
them, so that it is made of the assignments of `soupkit.align.matching.assign`. Shape suffixes: N positions of
an axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from soupkit.align.graph.expression import Atom, AxisExpr, index_of, names_in
from soupkit.align.matching.assign import Order, best_step
from soupkit.align.matching.cells import Cell
from soupkit.align.matching.similarity import Pair, cells_by_mover, sum_of_pairs
from soupkit.align.permutation import identity
from soupkit.align.spec import Permutation, PermutationSpec

Tensors = dict[str, torch.Tensor]
MAX_STEPS = 100
TOLERANCE = 1e-5
"""A step that raises the sum by a smaller share is the last."""


@dataclass(frozen=True)
class Axes:
    """The free axes of the tensors that are matched, and what lies on them, for one assignment per mover."""

    spec: PermutationSpec
    shapes: dict[str, torch.Size]

    @cached_property
    def free(self) -> dict[str, dict[int, AxisExpr]]:
        """tensor → axis → what may move on it."""
        return {
            name: {number: axis for number, axis in enumerate(self.spec.axes[name]) if names_in(axis)}
            for name in self.shapes
        }

    @cached_property
    def expressions(self) -> tuple[AxisExpr, ...]:
        """What lies on any axis, each once."""
        return tuple(dict.fromkeys(axis for axes in self.free.values() for axis in axes.values()))

    @cached_property
    def gradient_cells(self) -> dict[str, list[Cell]]:
        """mover → its cells in `tensor@axis`, where all other axes are settled."""
        keyed = {
            f"{name}@{number}": [
                axis if place == number else Atom(None, size) for place, size in enumerate(shape)
            ]
            for name, shape in self.shapes.items()
            for number, axis in self.free[name].items()
        }
        return cells_by_mover(self.spec, keyed)

    @cached_property
    def hull_cells(self) -> dict[str, list[Cell]]:
        """mover → its cells in the matrices [N, N] of the expressions."""
        return cells_by_mover(
            self.spec, {str(k): [axis, Atom(None, axis.size)] for k, axis in enumerate(self.expressions)}
        )

    def vertex(self, cells: dict[str, list[Cell]], target: Tensors, moving: Tensors) -> dict[str, Order]:
        """The permutation of everything with the largest ⟨target, permuted moving⟩, cell by cell."""
        pair = Pair(self.spec, target, moving, cells, {"": 1.0})
        found = identity(self.spec)
        for mover, own in cells.items():
            if own:
                found |= best_step(pair, mover, own).orders
        return found


@dataclass(frozen=True, eq=False)
class Relaxed(Mapping[str, torch.Tensor]):
    """The tensors of a model whose axes are multiplied by means of permutations; memory: N² of every kind of
    axis."""

    axes: Axes
    source: Tensors
    matrices: dict[AxisExpr, torch.Tensor]

    @classmethod
    def at(cls, axes: Axes, source: Tensors, permutation: Permutation) -> Relaxed:
        """The model at a vertex."""
        device = next(iter(source.values())).device
        indices = {
            axis: torch.from_numpy(index_of(axis, permutation)).to(device) for axis in axes.expressions
        }
        return cls(
            axes, source, {axis: torch.eye(axis.size, device=device)[at] for axis, at in indices.items()}
        )

    def towards(self, end: Relaxed, step: float) -> Relaxed:
        """The model a share of the way to another place."""
        matrices = {axis: matrix.lerp(end.matrices[axis], step) for axis, matrix in self.matrices.items()}
        return Relaxed(self.axes, self.source, matrices)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.but(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)

    def but(self, name: str, stays: int | None) -> torch.Tensor:
        """One tensor with its axes multiplied, all but one."""
        tensor = self.source[name]
        for number, axis in self.axes.free[name].items():
            if number != stays:
                tensor = torch.tensordot(self.matrices[axis], tensor, dims=([1], [number])).movedim(0, number)
        return tensor.contiguous()

    def settled(self) -> dict[str, Order]:
        """The permutation that is nearest to the means: the projection onto the vertices."""
        target = {str(k): self.matrices[axis] for k, axis in enumerate(self.axes.expressions)}
        moving = {key: torch.eye(len(matrix), device=matrix.device) for key, matrix in target.items()}
        return self.axes.vertex(self.axes.hull_cells, target, moving)


def frank_wolfe(
    spec: PermutationSpec, models: Sequence[Tensors], start: Sequence[Permutation]
) -> list[dict[str, Order]]:
    """One permutation per model, into a universe of all. models: what is matched, contiguous float32, on one
    device.

    Memory: all models three times, and N² of every kind of axis and model. Cost per step: about 12 N
    multiplications per weight and model. The result is a vertex again, and may be below the start: compare
    them.
    """
    axes = Axes(spec, {name: tensor.shape for name, tensor in models[0].items()})
    current = [Relaxed.at(axes, model, each) for model, each in zip(models, start, strict=True)]
    value = sum_of_pairs(current)
    for _ in range(MAX_STEPS):
        ends = [Relaxed.at(axes, *pair) for pair in zip(models, _vertices(axes, current), strict=True)]
        step, reached = _best_step(axes, current, ends, value)
        if reached <= value + TOLERANCE * abs(value):
            break
        current, value = _between(current, ends, step), reached
    return [model.settled() for model in current]


def _vertices(axes: Axes, models: Sequence[Relaxed]) -> Iterator[dict[str, Order]]:
    """For each model the vertex that the gradient points to: ⟨sum of the others, the model⟩ is linear in each
    axis."""
    moved = [dict(model) for model in models]
    total = {name: torch.stack([tensors[name] for tensors in moved]).sum(0) for name in axes.shapes}
    for model, own in zip(models, moved, strict=True):
        others = {name: total[name] - own[name] for name in axes.shapes}
        places = [(name, axis) for name in axes.shapes for axis in axes.free[name]]
        moving = {f"{name}@{axis}": model.but(name, axis) for name, axis in places}
        yield axes.vertex(
            axes.gradient_cells, {f"{name}@{axis}": others[name] for name, axis in places}, moving
        )


def _between(models: Sequence[Relaxed], ends: Sequence[Relaxed], step: float) -> list[Relaxed]:
    return [model.towards(end, step) for model, end in zip(models, ends, strict=True)]


def _best_step(
    axes: Axes, models: Sequence[Relaxed], ends: Sequence[Relaxed], value: float
) -> tuple[float, float]:
    """The step in (0, 1] with the largest sum on the line, a polynomial of twice as many degrees as axes are
    free."""
    degree = 2 * max(len(free) for free in axes.free.values())
    at = np.linspace(0, 1, degree + 1)
    values = np.array([value, *(sum_of_pairs(_between(models, ends, step)) for step in at[1:].tolist())])
    line = np.polynomial.Polynomial.fit(at, values, degree, domain=[0, 1], window=[0, 1])
    roots = line.deriv().roots()
    inside = [root for root in roots[np.abs(roots.imag) < 1e-9].real.tolist() if 0 < root < 1]
    return max(((step, float(line(step))) for step in (*inside, 1.0)), key=lambda found: found[1])
