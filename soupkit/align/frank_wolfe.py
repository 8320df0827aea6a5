"""Frank–Wolfe: all models and all groups matched at once, through the inside of the permutations' convex hull.

C2M3 (Crisostomi, Fumero, Baieri, Bernard, Rodolà 2024, arXiv:2405.17897, section 3): every model p gets one permutation
into a common universe, so that matches are consistent along every cycle of models, and Σ_{p<q} ⟨π_p(θ_p), π_q(θ_q)⟩ is
raised over means of permutations: towards the vertex that the gradient points to, by the step that is best on the line.
Here a vertex is a permutation of everything, heads with the units inside them, so that it is made of the assignments
of `soupkit.align.assign`. Shape suffixes: N positions of an axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from soupkit.align.assign import Order, best_step
from soupkit.align.cells import Cell, cells_of
from soupkit.align.expression import Atom, AxisExpr, index_of, names_in
from soupkit.align.permutation import identity
from soupkit.align.similarity import Pair
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
            f"{name}@{number}": [axis if place == number else Atom(None, size) for place, size in enumerate(shape)]
            for name, shape in self.shapes.items()
            for number, axis in self.free[name].items()
        }
        return self._by_mover(keyed)

    @cached_property
    def hull_cells(self) -> dict[str, list[Cell]]:
        """mover → its cells in the matrices [N, N] of the expressions."""
        return self._by_mover({str(k): [axis, Atom(None, axis.size)] for k, axis in enumerate(self.expressions)})

    def vertex(self, cells: dict[str, list[Cell]], target: Tensors, moving: Tensors) -> dict[str, Order]:
        """The permutation of everything with the largest ⟨target, permuted moving⟩, cell by cell."""
        pair = Pair(self.spec, target, moving, cells, {"": 1.0})
        found = identity(self.spec)
        for mover, own in cells.items():
            found |= best_step(pair, mover, own).orders
        return found

    def _by_mover(self, keyed: dict[str, list[AxisExpr]]) -> dict[str, list[Cell]]:
        found: dict[str, list[Cell]] = {name: [] for name, group in self.spec.groups.items() if group.inside is None}
        for key, axes in keyed.items():
            for cell in cells_of(key, axes):
                for mover in cell.movers:
                    found[mover].append(cell)
        return {mover: cells for mover, cells in found.items() if cells}


class Relaxed:
    """One model whose axes are multiplied by means of permutations; memory: N² of every kind of axis."""

    def __init__(self, axes: Axes, tensors: Tensors, permutation: Permutation) -> None:
        self.axes, self.tensors = axes, tensors
        self.matrices = {axis: self._matrix(axis, permutation) for axis in axes.expressions}

    def at(self, vertex: Permutation, step: float) -> Relaxed:
        """The model a share of the way towards a permutation."""
        moved = Relaxed.__new__(Relaxed)
        moved.axes, moved.tensors = self.axes, self.tensors
        moved.matrices = {
            axis: (1 - step) * matrix + step * self._matrix(axis, vertex) for axis, matrix in self.matrices.items()
        }
        return moved

    def tensor(self, name: str, *, but: int | None = None) -> torch.Tensor:
        """One tensor with its axes multiplied, all `but` one."""
        tensor = self.tensors[name]
        for number, axis in self.axes.free[name].items():
            if number != but:
                tensor = torch.tensordot(self.matrices[axis], tensor, dims=([1], [number])).movedim(0, number)
        return tensor.contiguous()

    def settled(self) -> dict[str, Order]:
        """The permutation that is nearest to the means: the projection onto the vertices."""
        target = {str(k): self.matrices[axis] for k, axis in enumerate(self.axes.expressions)}
        moving = {key: torch.eye(len(matrix), device=matrix.device) for key, matrix in target.items()}
        return self.axes.vertex(self.axes.hull_cells, target, moving)

    def _matrix(self, axis: AxisExpr, permutation: Permutation) -> torch.Tensor:
        device = next(iter(self.tensors.values())).device
        return torch.eye(axis.size, device=device)[torch.from_numpy(index_of(axis, permutation)).to(device)]


def frank_wolfe(
    spec: PermutationSpec, models: Sequence[Tensors], start: Sequence[Permutation]
) -> list[dict[str, Order]]:
    """One permutation per model, into a universe of all. models: what is matched, contiguous float32, on one device.

    Memory: all models three times, and N² of every kind of axis and model. Cost per step: about 12 N multiplications
    per weight and model. The result is a vertex again, and may be below the start: compare them.
    """
    axes = Axes(spec, {name: tensor.shape for name, tensor in models[0].items()})
    current = [Relaxed(axes, model, each) for model, each in zip(models, start, strict=True)]
    value = _sum_of_pairs(current)
    for _ in range(MAX_STEPS):
        vertices = list(_vertices(axes, current))
        step, reached = _best_step(axes, current, vertices, value)
        if reached <= value + TOLERANCE * abs(value):
            break
        current = [model.at(vertex, step) for model, vertex in zip(current, vertices, strict=True)]
        value = reached
    return [model.settled() for model in current]


def _vertices(axes: Axes, models: Sequence[Relaxed]) -> Iterator[dict[str, Order]]:
    """For each model the vertex that the gradient points to: ⟨sum of the others, the model⟩ is linear in each axis."""
    names = list(axes.shapes)
    total = {name: sum((model.tensor(name) for model in models), start=torch.zeros(())) for name in names}
    for model in models:
        others = {name: (total[name] - model.tensor(name)).contiguous() for name in names}
        moving = {f"{name}@{axis}": model.tensor(name, but=axis) for name in names for axis in axes.free[name]}
        target = {f"{name}@{axis}": others[name] for name in names for axis in axes.free[name]}
        yield axes.vertex(axes.gradient_cells, target, moving)


def _best_step(
    axes: Axes, models: Sequence[Relaxed], vertices: Sequence[Permutation], value: float
) -> tuple[float, float]:
    """The step in (0, 1] with the largest sum on the line, a polynomial of twice as many degrees as axes are free."""
    degree = 2 * max(len(free) for free in axes.free.values())
    at = np.linspace(0, 1, degree + 1)
    moved = ([model.at(v, float(step)) for model, v in zip(models, vertices, strict=True)] for step in at[1:])
    values = np.array([value, *(_sum_of_pairs(each) for each in moved)])
    line = np.polynomial.Polynomial.fit(at, values, degree, domain=[0, 1], window=[0, 1])
    roots = line.deriv().roots()
    inside = [root for root in roots[np.abs(roots.imag) < 1e-9].real.tolist() if 0 < root < 1]
    return max(((step, float(line(step))) for step in (*inside, 1.0)), key=lambda found: found[1])


def _sum_of_pairs(models: Sequence[Relaxed]) -> float:
    """Σ_{p<q} ⟨θ_p, θ_q⟩ of the models as they are moved, in float64."""
    total = 0.0
    for name in models[0].axes.shapes:
        moved = [model.tensor(name).double().reshape(-1) for model in models]
        whole = torch.stack(moved).sum(0)
        total += (float(whole.dot(whole)) - sum(float(each.dot(each)) for each in moved)) / 2
    return total
