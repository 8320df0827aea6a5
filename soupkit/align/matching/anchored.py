"""The anchored start of weight matching: first the groups whose surroundings are known.

Plain coordinate ascent compares units by their weights towards units that are themselves still out of order,
and on residual streams it gets stuck there: of an exactly permuted copy of a ViT it finds 3 to 95 % of the
groups, from the anchored start all. Shape suffixes: N units of the mover, U units of another one, R
everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soupkit.align.matching.assign import Order, assign, best_step
from soupkit.align.matching.cells import Cell
from soupkit.align.matching.similarity import Pair
from soupkit.align.permutation import compose, identity

NEARLY = 1e-3
"""What a weight counts, beside an anchored one, when one other mover is unmatched: little, but more than
nothing."""
MOST_ROWS = 1 << 13
"""Rows, N · U, up to which units are compared regardless of how the U are ordered or rotated."""


def anchored_order(pair: Pair) -> list[str]:
    """The movers of a pair, the best anchored first.

    A cell is anchored for a mover when all its other axes are pinned or run over movers that come before.
    Next is the mover with the largest share of its weights in anchored cells.
    """
    frontier, order = _Frontier(pair), []
    while frontier.unmatched:
        order.append(frontier.best())
        frontier.settle(order[-1])
    return order


def anchored_start(pair: Pair, order: Sequence[str]) -> dict[str, Order]:
    """Match every mover once, in this order, by its anchored cells alone, and apply each result to `pair` at
    once.

    A mover that has none is matched in a way that does not depend on the order of what is still unmatched.
    """
    frontier = _Frontier(pair)
    permutation = identity(pair.spec)
    for mover in order:
        anchored = frontier.anchored(mover)
        if anchored:
            orders = best_step(pair, mover, anchored).orders
        else:
            similarity = _regardless_of_order(pair, mover, frontier)
            orders = {mover: assign(similarity.double().cpu().numpy())}
        if any((each[1:] < each[:-1]).any() for each in orders.values()):
            pair.move(pair.names(mover), orders)
            permutation = compose(permutation, orders, spec=pair.spec)
        frontier.settle(mover)
    return permutation


class _Frontier:
    """Which movers are matched, and how much of the weight of every other is thereby anchored."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.unmatched = set(pair.cells)
        self.left = {cell: set(cell.movers) for cells in pair.cells.values() for cell in cells}
        self.scores = {mover: self._score(mover) for mover in self.unmatched}

    def best(self) -> str:
        """The unmatched mover with the largest anchored share; of equals the first by name."""
        return min(self.unmatched, key=lambda mover: (-self.scores[mover], mover))

    def anchored(self, mover: str) -> list[Cell]:
        """The cells of a mover that nothing unmatched but itself lies on, where they can tell units apart."""
        return [
            cell for cell in self.pair.cells[mover] if self._is_anchored(cell) and _tells(self.pair, cell)
        ]

    def settle(self, mover: str) -> None:
        """The mover is matched: its cells may now anchor others."""
        self.unmatched.discard(mover)
        touched: set[str] = set()
        for cell in self.pair.cells[mover]:
            self.left[cell].discard(mover)
            touched |= self.left[cell]
        for other in touched:
            self.scores[other] = self._score(other)

    def _is_anchored(self, cell: Cell) -> bool:
        """Not where one mover lies on two axes: then its own order is what is missing."""
        return len(self.left[cell]) == 1 and all(len(cell.places(mover)) == 1 for mover in self.left[cell])

    def _score(self, mover: str) -> float:
        cells = self.pair.cells[mover]
        anchored = sum(cell.num_elements * self._share(cell) for cell in cells)
        return anchored / max(1, sum(cell.num_elements for cell in cells))

    def _share(self, cell: Cell) -> float:
        return 1.0 if self._is_anchored(cell) else NEARLY if len(self.left[cell]) == 2 else 0.0


def _tells(pair: Pair, cell: Cell) -> bool:
    """Whether a cell has anything to compare: gains that are all one (or zero) fit any unit to any other."""
    block = cell.view(pair.target[cell.name], [])
    return bool(block.min() < block.max())


def _regardless_of_order(pair: Pair, mover: str, frontier: _Frontier) -> torch.Tensor:
    """Similarity float32[N, N] of units that are known only by axes that are still unmatched.

    ‖X_i Y_jᵀ‖_F² of the units' [U, R] matrices stays the same when their rows are permuted, or rotated; where
    there are too many rows, the sorted values of each unit are compared.
    """
    size = pair.spec.groups[mover].size
    total = torch.zeros(size, size, device=pair.device)
    for cell in pair.cells[mover]:
        own = cell.places(mover)
        others = [place for other in sorted(frontier.left[cell] - {mover}) for place in cell.places(other)]
        if len(own) != 1 or not _tells(pair, cell):
            continue
        x, y = (cell.view(tensors[cell.name], [*own, *others[:1]]) for tensors in (pair.target, pair.moving))
        scale = max(float(x.norm() * y.norm()), 1e-30)
        if len(others) == 1 and x.ndim > 2 and size * x.shape[1] <= MOST_ROWS:
            total += _rotation_free(x, y) / scale**2
        else:
            x_nr, y_nr = (block.reshape(size, -1).sort(dim=1).values for block in (x, y))
            total += x_nr @ y_nr.T / scale
    return total


def _rotation_free(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """‖X_i Y_jᵀ‖_F² for every pair of units, of blocks [N, U, …]. Cost: (N U)² R."""
    size, num_others = x.shape[:2]
    products = x.reshape(size * num_others, -1) @ y.reshape(size * num_others, -1).T
    return products.square_().reshape(size, num_others, size, num_others).sum((1, 3))
