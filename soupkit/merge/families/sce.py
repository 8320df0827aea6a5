"""SCE: select by variance, calculate coefficients by energy, erase minority signs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.families.election import elected
from soupkit.merge.pieces import Pieces, kept
from soupkit.merge.select import Cut, Selected, cut


def sce(pieces: Pieces, *, density: float, normalize: bool = True) -> Iterator[Array]:
    """Keep the max(1, round(density · n)) entries that vary most between the task vectors; weight each task
    vector by its share of the squares that are left; drop the entries of the losing sign (Wan et al. 2024,
    arXiv:2408.07990, §3.3).

    normalize divides each entry by the weights of those that agree, as the authors' code does and the paper
    does not say. Equal variances keep the lower index. Reads task vectors. Memory: a piece, and up to 8 MB to
    find the cut.
    """
    place = cut(pieces, [kept(density, pieces.num_elements)], _variance)
    energy = np.zeros(pieces.num_ingredients)
    for vectors in _selected(pieces, place):
        energy += np.einsum("kn,kn->k", vectors, vectors)
    total = energy.sum()
    weight = energy / total if total else np.full(energy.size, 1 / energy.size)
    for vectors in _selected(pieces, place):
        yield _erased(vectors, weight, normalize=normalize)


def _variance(vectors: Array) -> Array:
    """The variance of every entry over the task vectors, as one row; of one task vector, its square."""
    values = np.asarray(vectors, np.float64)
    variance: Array = np.var(values, axis=0) if len(values) > 1 else np.square(values[0])
    return variance[None]


def _selected(pieces: Pieces, place: Cut) -> Iterator[Array]:
    selected = Selected(place)
    for vectors in pieces:
        mask = selected.mask(_variance(vectors))
        np.multiply(vectors, mask, out=vectors)
        yield vectors


def _erased(vectors: Array, weight: Array, *, normalize: bool) -> Array:
    """The sign is elected without the weights, which the election of `elected` would apply."""
    mass = np.add.reduce(vectors)
    agrees = (vectors > 0) == (mass > 0)
    agrees &= vectors != 0
    np.multiply(vectors, agrees & (mass != 0), out=vectors)
    return elected(vectors, weight, normalize=normalize)
