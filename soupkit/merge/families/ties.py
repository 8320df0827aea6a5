"""TIES: trim by magnitude, elect a sign, merge what agrees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.families.election import elected
from soupkit.merge.pieces import Pieces, kept
from soupkit.merge.select import Selected, cut, magnitude


def ties(pieces: Pieces, *, weight: Array, density: Array, normalize: bool = True) -> Iterator[Array]:
    """Keep each task vector's max(1, round(density · n)) largest entries, elect the sign of their weighted
    sum, and average those that agree (Yadav et al. 2023, arXiv:2306.01708, algorithm 1).

    Trims per tensor, where the paper trims a whole model at once. Memory: a piece, and up to 8 MB to find the
    cut.
    """
    for vectors in largest(pieces, density):
        yield elected(vectors, weight, normalize=normalize)


def largest(pieces: Pieces, density: Array) -> Iterator[Array]:
    """The task vectors with all but their largest entries set to zero."""
    counts = [kept(share, pieces.num_elements) for share in density]
    selected = Selected(cut(pieces, counts))
    for vectors in pieces:
        np.multiply(vectors, selected.mask(magnitude(vectors)), out=vectors)
        yield vectors
