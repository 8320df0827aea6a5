"""How alike two models are, unit by unit: the sums that matching maximises.

Shape suffixes: N units of a group, K blocks, U units inside a block, R everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from soupkit.align.matching.cells import Cell, Inside, cells_of
from soupkit.align.spec import AxisExpr, Permutation, PermutationSpec

CHUNK = 1 << 24
"""Elements that are copied at a time."""
STATISTICS = ("running_mean", "running_var")
"""Permuted, but no part of the objective: they are measurements, of another scale than weights."""


@dataclass
class Pair:
    """Two models under matching: the target's tensors, the other's as permuted so far, and the cells of both.

    Tensors are contiguous float32, on one device. A mover is a group of units, or of blocks with all that is
    inside them; `cells` holds those of each. Memory: both models.
    """

    spec: PermutationSpec
    target: Mapping[str, torch.Tensor]
    moving: dict[str, torch.Tensor]
    cells: dict[str, list[Cell]] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.norms:
            return
        for name, tensor in self.target.items():
            other = self.moving[name]
            self.norms[name] = float(np.sqrt(_inner(tensor, tensor) * _inner(other, other)))
        self.cells = cells_by_mover(self.spec, {name: self.spec.axes[name] for name in self.target})

    def copy(self) -> Pair:
        """A pair that may be permuted while this one stays. Tensors are shared until they are permuted."""
        return Pair(self.spec, self.target, dict(self.moving), self.cells, self.norms)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.target.values())).device

    def names(self, mover: str) -> list[str]:
        """The tensors that a mover's units are part of."""
        return sorted({cell.name for cell in self.cells[mover]})

    def neighbours(self, mover: str) -> set[str]:
        """The movers whose best permutation depends on that of this one."""
        cells = self.cells[mover]
        itself = {mover} if any(len(cell.places(mover)) > 1 for cell in cells) else set()
        return {other for cell in cells for other in cell.movers if other != mover} | itself

    def gram(self, mover: str, cells: Iterable[Cell]) -> torch.Tensor:
        """S[i, j] = Σ over cells ⟨unit i of the target, unit j of the other⟩, float32[N, N].

        Cost: 2 N times the elements of the cells; memory: N² and a copy of at most CHUNK elements of both.
        """
        size = self.spec.groups[mover].size
        total = torch.zeros(size, size, device=self.device)
        for cell in cells:
            for place in cell.places(mover):
                self._add(total, cell, [place])
        return total

    def block_gram(self, family: Inside, cells: Iterable[Cell]) -> torch.Tensor:
        """S[k, u, l, v] = Σ over cells ⟨unit u of block k of the target, unit v of block l of the other⟩."""
        num_blocks, size = len(family.names), self.spec.groups[family.names[0]].size
        total = torch.zeros(num_blocks * size, num_blocks * size, device=self.device)
        for cell in cells:
            self._add(total, cell, [cell.places(family.blocks)[0], cell.places(family)[0]])
        return total.reshape(num_blocks, size, num_blocks, size)

    def _add(self, total: torch.Tensor, cell: Cell, first: Sequence[int]) -> None:
        blocks = (cell.view(tensors[cell.name], first) for tensors in (self.target, self.moving))
        for x_nr, y_nr in _in_chunks(*blocks, num_first=len(first)):
            total.addmm_(x_nr, y_nr.T)

    def objective(self, names: Iterable[str] | None = None) -> float:
        """Σ ⟨target, other as permuted so far⟩ over tensors, in float64."""
        return sum(
            _inner(self.target[name], self.moving[name]) for name in (self.target if names is None else names)
        )

    def norm(self, names: Iterable[str] | None = None) -> float:
        """Σ ‖target‖ · ‖other‖ over tensors: the objective is at most that."""
        return sum(self.norms[name] for name in (self.target if names is None else names))

    def move(self, names: Iterable[str], permutation: Permutation) -> None:
        """Permute these tensors of the other model: unit i becomes what unit permutation[group][i] is now."""
        for name in names:
            self.moving[name] = permuted(self.moving[name], self.spec, name, permutation)


def cells_by_mover(spec: PermutationSpec, axes: Mapping[str, Sequence[AxisExpr]]) -> dict[str, list[Cell]]:
    """mover → the cells that its units lie in, of tensors with these axes."""
    found: dict[str, list[Cell]] = {name: [] for name, group in spec.groups.items() if group.inside is None}
    for name, expressions in axes.items():
        for cell in cells_of(name, expressions):
            for mover in cell.movers:
                found[mover].append(cell)
    return found


def sum_of_pairs(models: Sequence[Mapping[str, torch.Tensor]]) -> float:
    """Σ_{i<j} ⟨θ_i, θ_j⟩, in float64: what matching of several models raises."""
    total = 0.0
    for name in models[0]:
        flat = [model[name].double().reshape(-1) for model in models]
        whole = torch.stack(flat).sum(0)
        total += (float(whole.dot(whole)) - sum(float(each.dot(each)) for each in flat)) / 2
    return total


def all_permuted(
    tensors: Mapping[str, torch.Tensor], spec: PermutationSpec, permutation: Permutation
) -> dict[str, torch.Tensor]:
    """A network's tensors, permuted; those that nothing moves are shared."""
    return {name: permuted(tensor, spec, name, permutation) for name, tensor in tensors.items()}


def permuted(
    tensor: torch.Tensor, spec: PermutationSpec, name: str, permutation: Permutation
) -> torch.Tensor:
    """One tensor with its axes gathered: new[i] = old[permutation[i]] along each."""
    for axis in range(tensor.ndim):
        index = spec.index(name, axis, permutation)
        if index is not None:
            tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return tensor


def objective_names(spec: PermutationSpec, tensors: Iterable[str]) -> list[str]:
    """The tensors that matching looks at: those with a free axis, without batch-norm statistics."""
    attached = {name for group in spec.groups for name, _ in spec.attached(group)}
    return sorted(name for name in tensors if name in attached and name.rpartition(".")[2] not in STATISTICS)


def _in_chunks(
    x: torch.Tensor, y: torch.Tensor, *, num_first: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both blocks as matrices [N, R], in parts of at most CHUNK elements along their longest other
    dimension."""
    num_rows = int(np.prod(x.shape[:num_first]))
    if x.ndim == num_first:
        yield x.reshape(num_rows, 1), y.reshape(num_rows, 1)
        return
    longest = max(range(num_first, x.ndim), key=lambda number: x.shape[number])
    step = max(1, CHUNK * x.shape[longest] // max(1, x.numel()))
    for start in range(0, x.shape[longest], step):
        index = (*(slice(None),) * longest, slice(start, start + step))
        yield x[index].reshape(num_rows, -1), y[index].reshape(num_rows, -1)


def _inner(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x.reshape(-1), y.reshape(-1)
    parts = (slice(start, start + CHUNK) for start in range(0, len(x), CHUNK))
    return sum(float(torch.dot(x[part].double(), y[part].double())) for part in parts)
