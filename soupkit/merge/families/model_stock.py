"""Model Stock: how far from the base to the average, read off the angles between the fine-tuned models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.families.spherical import directions
from soupkit.merge.pieces import Pieces
from soupkit.merge.span import Matrix, in_span

SINGULAR = 1e-6
"""1 + (K − 1) cos θ below this: the task vectors cancel and the optimum is undefined."""


def model_stock(pieces: Pieces, *, rows: bool = False) -> Iterator[Array]:
    """t · mean of the task vectors, t = K cos θ / (1 + (K − 1) cos θ) (Jang et al. 2024, arXiv:2403.19522,
    eq. 3).

    cos θ is the mean of the cosines of all pairs, as its authors compute it for K > 2; per tensor, or per row
    (the paper's filter-wise variant). Zero task vectors count as orthogonal to all; where opposed task
    vectors make the formula singular, the base is kept. Reads task vectors; K ≥ 2. Memory: a piece.
    """
    return in_span(pieces, coefficients, rows=rows)


def coefficients(products: Matrix) -> Matrix:
    """t / K for every one of the K task vectors."""
    num = len(products)
    _, cosines = directions(products)
    cosine = float(np.mean(cosines[np.triu_indices(num, 1)]))
    divisor = 1.0 + (num - 1) * cosine
    t = num * cosine / divisor if divisor > SINGULAR else 0.0
    return np.full(num, t / num)
