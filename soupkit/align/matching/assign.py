"""One step of matching: the best order of one group of units, or of blocks together with what is inside them.

Shape suffixes: N units of a group, K blocks, U units inside a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from soupkit.align.matching.cells import Cell, Inside
from soupkit.align.matching.similarity import Pair

Order = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """What one step does: the order of the mover, and of the groups inside its blocks; gain in similarity."""

    orders: dict[str, Order]
    gain: float


def assign(similarity_nn: NDArray[np.float64]) -> Order:
    """The order that maximises Σ_i S[i, order[i]] (Crouse 2016, as scipy has it); ties stay where they
    are."""
    nudge = 1e-9 * float(np.abs(similarity_nn).max(initial=0.0))
    _, order = linear_sum_assignment(similarity_nn + nudge * np.eye(len(similarity_nn)), maximize=True)
    return np.asarray(order, np.int64)


def best_step(pair: Pair, mover: str, cells: Sequence[Cell]) -> Step:
    """The best order of one mover by some of its cells, all else fixed.

    Blocks are matched by what they are worth once their units are in the best order for each other: one
    assignment per pair of blocks, then one of the blocks. So both levels come out best together.
    """
    plain = [cell for cell in cells if not cell.families(mover)]
    families = list(dict.fromkeys(family for cell in cells for family in cell.families(mover)[:1]))
    similarity = pair.gram(mover, plain).double().cpu().numpy()
    stay = float(np.trace(similarity))
    inner = {}
    for family in families:
        within = [cell for cell in cells if cell.families(mover)[:1] == [family]]
        values, orders, traces = _within_blocks(pair.block_gram(family, within).double().cpu().numpy())
        similarity, stay = similarity + values, stay + traces
        inner[family] = orders
    order = assign(similarity)
    gain = float(similarity[np.arange(len(order)), order].sum()) - stay
    return Step({mover: order, **_inner_orders(inner, order)}, gain)


def _within_blocks(similarity_kuku: NDArray[np.float64]) -> tuple[NDArray[np.float64], Order, float]:
    """For every pair of blocks the value and order of its best assignment; and the value of leaving all in
    place."""
    num_blocks, size = similarity_kuku.shape[:2]
    values = np.empty((num_blocks, num_blocks))
    orders = np.empty((num_blocks, num_blocks, size), np.int64)
    for k in range(num_blocks):
        for other in range(num_blocks):
            block_uu = similarity_kuku[k, :, other]
            orders[k, other] = assign(block_uu)
            values[k, other] = block_uu[np.arange(size), orders[k, other]].sum()
    return values, orders, float(np.einsum("kuku->", similarity_kuku))


def _inner_orders(inner: dict[Inside, Order], order: Order) -> dict[str, Order]:
    """Block k takes what block order[k] was, its units in the order found for these two."""
    return {
        name: orders[place, order[place]]
        for family, orders in inner.items()
        for place, name in enumerate(family.names)
    }
