"""Two checkpoints, entry by entry: NearSwap, and Arcee Fusion's selection by importance.

Shape suffixes: N elements of a piece, R rows of it, L elements of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.pieces import Pieces
from soupkit.merge.select import cut


def nearswap(pieces: Pieces, *, t: float) -> Iterator[Array]:
    """a + (b − a) · min(1, t / |a − b|): where b is within t of a, b; elsewhere, t towards b (alchemonaut
    2024, model card of QuartetAnemoi-70B-t0.0001). Reads the task vector b − a, of which this is clip(b − a,
    −t, t). Memory: a piece."""
    for vectors in pieces:
        yield np.clip(vectors[0], -t, t)


def fusion(pieces: Pieces, *, fence: float = 1.5) -> Iterator[Array]:
    """Take from b the entries of high importance |b − a| · KL(softmax b ‖ softmax a), and a elsewhere: Arcee
    Fusion (Arcee 2025, "The Art of Selective Merging"). High: at least median + fence · (third − first
    quartile).

    The softmax runs over a row (an output unit). The quartiles are order statistics of the whole tensor,
    exactly. Reads the two weights, a first. Memory: a piece, or the longest row, and up to 8 MB to find the
    quartiles.
    """
    size, length = pieces.num_elements, pieces.row_length
    quartiles = [_value_at(pieces, int(share * (size - 1)), length) for share in (0.25, 0.5, 0.75)]
    threshold = quartiles[1] + fence * (quartiles[2] - quartiles[0])
    for pair in pieces:
        yield np.where(_importance(pair, length)[0] >= threshold, pair[1], pair[0])


def _value_at(pieces: Pieces, rank: int, length: int) -> float:
    """The importance with `rank` smaller ones before it: the least of the size − rank largest."""
    place = cut(pieces, [pieces.num_elements - rank], lambda pair: _importance(pair, length), by_entry=False)
    return float(place.value[0])


def _importance(pair: Array, length: int) -> Array:
    a_RL, b_RL = (np.asarray(values, np.float64).reshape(-1, length) for values in pair)
    log_a, log_b = _log_softmax(a_RL), _log_softmax(b_RL)
    divergence_R = np.add.reduce(np.exp(log_b) * (log_b - log_a), axis=1)
    importance: Array = (np.abs(b_RL - a_RL) * np.maximum(divergence_R, 0.0)[:, None]).reshape(1, -1)
    return importance


def _log_softmax(rows_RL: Array) -> Array:
    shifted = rows_RL - rows_RL.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.add.reduce(np.exp(shifted), axis=1, keepdims=True))
    return result
