"""Merges that stay in the span of their inputs: a few coefficients, found from the inputs' inner products.

Slerp, Karcher means and Model Stock look like work on whole tensors. But their result is Σ_k c_k x_k, and c
depends on the Gram matrix ⟨x_i, x_j⟩ alone: one pass to measure, one to combine, and nothing larger than a
piece in memory.

Shape suffixes: K ingredients, N elements of a piece, L elements of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from soupkit.checkpoint.dtypes import Array
from soupkit.merge.pieces import Pieces

Matrix = NDArray[np.float64]
Coefficients = Callable[[Matrix], Matrix]


def gram(pieces: Pieces) -> Matrix:
    """⟨x_i, x_j⟩ of the K inputs, in float64. Cost: K²/2 products per element.

    Summed by numpy's own loops and not by a BLAS, whose sums depend on the machine's number of threads.
    """
    total = np.zeros((pieces.num_ingredients, pieces.num_ingredients))
    for piece_KN in pieces:
        _add_products(total, piece_KN)
    return _symmetric(total)


def _add_products(total_KK: Matrix, x_KN: Array) -> None:
    x_KN = np.asarray(x_KN, np.float64)
    for k in range(len(x_KN)):
        total_KK[k, k:] += np.einsum("n,jn->j", x_KN[k], x_KN[k:])


def _symmetric(upper: Matrix) -> Matrix:
    full: Matrix = np.triu(upper) + np.triu(upper, 1).T
    return full


def in_span(pieces: Pieces, coefficients: Coefficients, *, rows: bool = False) -> Iterator[Array]:
    """Σ_k c_k x_k with c = coefficients(Gram matrix): of the whole tensor, or of each row by itself.

    By rows, the pieces must hold whole rows.
    """
    if rows:
        for piece_KN in pieces:
            yield _rows_in_span(piece_KN, pieces.row_length, coefficients)
    else:
        column = coefficients(gram(pieces))
        for piece_KN in pieces:
            yield combine(piece_KN, column)


def combine(piece_KN: Array, column_K: Array) -> Array:
    """Σ_k c_k x_k. May overwrite the piece."""
    total: Array = piece_KN[0] * column_K[0]
    for x_N, c in zip(piece_KN[1:], column_K[1:], strict=True):
        np.multiply(x_N, c, out=x_N)
        np.add(total, x_N, out=total)
    return total


def _rows_in_span(piece_KN: Array, row_length: int, coefficients: Coefficients) -> Array:
    rows_KRL = piece_KN.reshape(len(piece_KN), -1, row_length)
    result: Array = np.empty_like(rows_KRL[0])
    for r in range(len(result)):
        total = np.zeros((len(piece_KN), len(piece_KN)))
        _add_products(total, rows_KRL[:, r])
        result[r] = combine(rows_KRL[:, r], coefficients(_symmetric(total)))
    return result.reshape(-1)
