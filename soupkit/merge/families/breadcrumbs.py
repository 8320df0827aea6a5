"""Model Breadcrumbs: without the smallest entries, and without the largest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.families.election import elected, total
from soupkit.merge.pieces import Pieces, kept
from soupkit.merge.select import Cut, Selected, cut, magnitude


def breadcrumbs(
    pieces: Pieces, *, weight: Array, density: Array, gamma: Array, normalize: bool = False
) -> Iterator[Array]:
    """Σ_k w_k m_k ⊙ τ_k, where m_k drops the round(gamma · n) largest entries of the tensor and keeps the
    next max(1, round(density · n)) (Davari & Belilovsky 2023, arXiv:2312.06795, §3.1). Fewer outliers are
    dropped where both shares together pass the tensor, so exactly k entries are kept. Memory: a piece, and up
    to 8 MB for the cuts.
    """
    for vectors in middle(pieces, density, gamma):
        yield total(vectors, weight, normalize=normalize)


def breadcrumbs_ties(
    pieces: Pieces, *, weight: Array, density: Array, gamma: Array, normalize: bool = False
) -> Iterator[Array]:
    """Breadcrumbs' masks (Davari & Belilovsky 2023, arXiv:2312.06795) with the sign election of TIES. Memory:
    a piece, and up to 8 MB for the cuts."""
    for vectors in middle(pieces, density, gamma):
        yield elected(vectors, weight, normalize=normalize)


def middle(pieces: Pieces, density: Array, gamma: Array) -> Iterator[Array]:
    """The task vectors with their largest and their smallest entries set to zero."""
    size = pieces.num_elements
    counts = [kept(share, size) for share in density]
    outliers = [min(round(share * size), size - count) for share, count in zip(gamma, counts, strict=True)]
    both = cut(pieces, [*(count + more for count, more in zip(counts, outliers, strict=True)), *outliers])
    num = pieces.num_ingredients
    outer = Selected(Cut(both.value[:num], both.equal[:num]))
    inner = Selected(Cut(both.value[num:], both.equal[num:]))
    for vectors in pieces:
        magnitudes = magnitude(vectors)
        np.multiply(vectors, outer.mask(magnitudes) & ~inner.mask(magnitudes), out=vectors)
        yield vectors
