"""Interpolation and means on the sphere: slerp, nuslerp, multislerp, the Karcher mean.

Directions u_k = x_k / ‖x_k‖ are averaged along great circles; lengths are averaged apart, or left to the
formula. Every result lies in the span of the inputs, so all of it is arithmetic on their Gram matrix (see
span.py).

Shape suffixes: K ingredients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from soupkit.checkpoint.dtypes import Array
from soupkit.errors import RecipeError
from soupkit.merge.families.election import check_sum
from soupkit.merge.pieces import Pieces
from soupkit.merge.span import Matrix, in_span

SMALL_SINE = 1e-7
"""Below this, an angle and its sine agree to float64's precision and slerp is a straight line."""


def slerp(pieces: Pieces, *, t: float, rows: bool = False) -> Iterator[Array]:
    """(sin((1−t)θ) a + sin(tθ) b) / sin θ, θ the angle between a and b (Shoemake 1985,
    doi:10.1145/325334.325242).

    The vectors keep their own lengths, as in every tool that merges weights this way. rows: each row (output
    unit) is a vector of its own. Where a and b are parallel, or one is zero, it is the straight line;
    antipodes have no great circle of their own, and get the line too. Memory: a piece.
    """
    return in_span(pieces, lambda products: slerp_coefficients(products, t), rows=rows)


def nuslerp(pieces: Pieces, *, weight: Array, rows: bool = False) -> Iterator[Array]:
    """Slerp at t = w_b / (w_a + w_b), of weights or of task vectors (Goddard 2024, mergekit). Raises
    RecipeError when they sum to zero. Memory: a piece."""
    return slerp(pieces, t=float(weight[1]) / check_sum(weight, "nuslerp"), rows=rows)


def slerp_coefficients(products: Matrix, t: float) -> Matrix:
    """The two coefficients of slerp, from the 2 × 2 Gram matrix."""
    norms = np.sqrt(np.diag(products))
    line = np.array([1.0 - t, t])
    if not norms.all():
        return line
    cosine = np.clip(products[0, 1] / (norms[0] * norms[1]), -1.0, 1.0)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    if sine < SMALL_SINE:
        return line
    coefficients: Matrix = np.sin(line * angle) / sine
    return coefficients


def multislerp(pieces: Pieces, *, weight: Array) -> Iterator[Array]:
    """Σ_k w_k‖x_k‖ · m, with m the direction of Σ_k w_k u_k and weights that sum to one (Goddard 2024,
    "Multi-SLERP").

    The published steps go on: into the tangent space at m, a weighted mean there, and back by the exponential
    map. But the u_k are projected onto the tangent space orthogonally, and Σ w_k (u_k − ⟨u_k, m⟩ m) = 0 by
    the choice of m, so the steps return m itself. Raises RecipeError where the weighted directions cancel
    (antipodes). Memory: a piece.
    """
    total = check_sum(weight, "multislerp")

    def coefficients(products: Matrix) -> Matrix:
        norms, cosines = directions(products)
        shares = np.where(norms > 0, weight / total, 0.0)
        length = _length(shares, cosines)
        if length < SMALL_SINE and norms.any():
            raise RecipeError(
                "multislerp: the weighted directions cancel each other", hint="give other weights"
            )
        return _of_directions(shares / (length or 1.0) * (shares @ norms), norms)

    return in_span(pieces, coefficients)


def karcher(
    pieces: Pieces, *, weight: Array, iterations: int = 50, tolerance: float = 1e-9
) -> Iterator[Array]:
    """Σ_k w_k‖x_k‖ · m, with m = argmin Σ_k w_k · angle(m, u_k)²: the Karcher mean on the sphere (Karcher
    1977, doi:10.1002/cpa.3160300502).

    m ← exp_m(Σ_k w_k log_m u_k) from the normalized mean on, until the step is shorter than `tolerance`
    (radians). Unique when all directions lie within a quarter turn of one another. For K = 2 it is slerp of
    the directions. Raises RecipeError when the weights sum to zero. Memory: a piece; the iteration is on K
    numbers.
    """
    shares: Matrix = np.asarray(weight, np.float64) / check_sum(weight, "karcher")

    def coefficients(products: Matrix) -> Matrix:
        norms, cosines = directions(products)
        valid = np.where(norms > 0, shares, 0.0)
        if not valid.any():
            return shares
        mean = _karcher_mean(valid / valid.sum(), cosines, iterations, tolerance)
        return _of_directions(mean * (shares @ norms), norms)

    return in_span(pieces, coefficients)


def directions(products: Matrix) -> tuple[Matrix, Matrix]:
    """Lengths of the inputs, and the cosines between them (0 where one is zero)."""
    norms: Matrix = np.sqrt(np.diag(products))
    safe = np.where(norms > 0, norms, 1.0)
    cosines: Matrix = np.clip(products / safe[:, None] / safe, -1.0, 1.0)
    return norms, cosines


def _of_directions(coefficients: Matrix, norms: Matrix) -> Matrix:
    """Coefficients of the unit vectors → coefficients of the inputs."""
    result: Matrix = np.divide(coefficients, norms, out=np.zeros_like(norms), where=norms > 0)
    return result


def _length(coefficients: Matrix, cosines: Matrix) -> float:
    """‖Σ c_k u_k‖."""
    return math.sqrt(max(0.0, float(coefficients @ cosines @ coefficients)))


def _karcher_mean(shares_K: Matrix, cosines: Matrix, iterations: int, tolerance: float) -> Matrix:
    """The mean's coefficients over the unit vectors."""
    mean = (
        shares_K
        if _length(shares_K, cosines) > SMALL_SINE
        else np.eye(len(shares_K))[int(np.argmax(shares_K))]
    )
    mean = mean / _length(mean, cosines)
    for _ in range(iterations):
        inner: Matrix = np.clip(cosines @ mean, -1.0, 1.0)
        angles: Matrix = np.arccos(inner)
        sines: Matrix = np.sin(angles)
        stretch: Matrix = np.divide(angles, sines, out=np.ones_like(sines), where=sines > SMALL_SINE)
        step = shares_K * stretch - np.sum(shares_K * stretch * inner) * mean
        length = _length(step, cosines)
        if length < tolerance:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * step
        mean /= _length(mean, cosines)
    return mean
