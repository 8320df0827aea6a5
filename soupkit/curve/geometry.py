"""Lengths, angles and planes in weight space, all from inner products of a few checkpoints.

Points are affine combinations of K checkpoints, so K² inner products say everything: no point is ever made to
be measured. Shape suffixes: K checkpoints, P points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array
from soupkit.checkpoint.source import read_chunk, slots_of
from soupkit.errors import CompatibilityError
from soupkit.merge.mixture import BATCH_NORM_STATISTICS

Matrix = NDArray[np.float64]
CHUNK = 1 << 18


def weight_names(checkpoint: Mapping[str, Array]) -> list[str]:
    """The tensors that count as weights: floating ones, without batch-norm statistics."""
    slots = slots_of(checkpoint)
    return [
        name
        for name, slot in slots.items()
        if slot.dtype in FLOATING and name.rpartition(".")[2] not in BATCH_NORM_STATISTICS
    ]


@dataclass(frozen=True)
class Geometry:
    """Inner products of w_0 … w_{K−1} seen from w_0: G_jk = ⟨w_j − w_0, w_k − w_0⟩, float64[K, K].

    Seen from w_0 because points of one training run lie close together and far from the origin. origin: ⟨w_0,
    w_0⟩; pull: ⟨w_0, w_k − w_0⟩, float64[K].
    """

    gram: Matrix
    origin: float
    pull: Matrix

    def distance(self, a: Matrix, b: Matrix) -> float:
        """‖w(a) − w(b)‖ for coefficients float64[K] that sum to one."""
        return float(np.sqrt(max(0.0, float((a - b) @ self.gram @ (a - b)))))

    def squared_norm(self, a: Matrix) -> float:
        """‖w(a)‖² for coefficients that sum to one."""
        return float(self.origin + 2 * a @ self.pull + a @ self.gram @ a)

    def steps(self, coefficients: Matrix) -> Matrix:
        """The distance of every point to the one before it, zero for the first: float64[P] of float64[P,
        K]."""
        moves = np.diff(coefficients, axis=0, prepend=coefficients[:1])
        return np.asarray(np.sqrt(np.maximum(0.0, np.einsum("pj,jk,pk->p", moves, self.gram, moves))))


def geometry(checkpoints: Sequence[Mapping[str, Array]], names: Iterable[str]) -> Geometry:
    """Measure checkpoints by the tensors `names`, in float64. Cost: every tensor is read once. Memory: K
    chunks."""
    num = len(checkpoints)
    gram, pull, origin = np.zeros((num, num)), np.zeros(num), 0.0
    for name in names:
        for chunk in _chunks(checkpoints, name):
            first = chunk[0]
            away = chunk - first
            gram += away @ away.T
            pull += away @ first
            origin += float(first @ first)
    return Geometry(gram, origin, pull)


def _chunks(checkpoints: Sequence[Mapping[str, Array]], name: str) -> Iterable[Matrix]:
    """The values of one tensor in all checkpoints, float64[K, n], a piece at a time."""
    slots = [slots_of(checkpoint)[name] for checkpoint in checkpoints]
    for start in range(0, slots[0].num_elements, CHUNK):
        size = min(CHUNK, slots[0].num_elements - start)
        rows = np.empty((len(checkpoints), size))
        for row, checkpoint, slot in zip(rows, checkpoints, slots, strict=True):
            values = np.empty(size, NUMPY_DTYPES[slot.dtype])
            read_chunk(checkpoint, name, start, values)
            row[:] = values
        yield rows


@dataclass(frozen=True)
class Plane:
    """The plane through w_0, w_1 and w_2: w(x, y) = w_0 + x u + y v.

    u = (w_2 − w_0)/‖·‖; v is w_1 − w_0 without its part along u, divided by its length (Garipov et al. 2018,
    arXiv:1802.10026, as for its figure 1). along: ⟨w_1 − w_0, u⟩; width: ‖w_2 − w_0‖; height: the length of
    that rest.
    """

    width: float
    along: float
    height: float

    @classmethod
    def through(cls, found: Geometry) -> Plane:
        """The plane of three measured checkpoints. Raises CompatibilityError when they lie on one line."""
        gram = found.gram
        width = float(np.sqrt(gram[2, 2]))
        along = float(gram[1, 2] / width) if width else 0.0
        height = float(np.sqrt(max(0.0, gram[1, 1] - along**2)))
        if width == 0 or height <= 1e-6 * width:
            raise CompatibilityError(
                "the three checkpoints lie on one line", hint="soupkit chain goes along a line of checkpoints"
            )
        return cls(width, along, height)

    def coefficients(self, x: float, y: float) -> Matrix:
        """w(x, y) as coefficients float64[3] of w_0, w_1, w_2."""
        second = y / self.height
        third = (x - second * self.along) / self.width
        return np.array([1 - second - third, second, third])

    def place(self, coefficients: Matrix) -> tuple[float, float]:
        """(x, y) of a combination of w_0, w_1 and w_2: the inverse of `coefficients`."""
        _, second, third = coefficients
        return float(third * self.width + second * self.along), float(second * self.height)

    def project(self, pulls: Matrix) -> tuple[float, float]:
        """(x, y) of the orthogonal projection of any w, given ⟨w − w_0, w_1 − w_0⟩ and ⟨w − w_0, w_2 −
        w_0⟩."""
        x = float(pulls[1]) / self.width
        return x, (float(pulls[0]) - self.along * x) / self.height

    def grid(
        self, num_points: int, margin: float, *, others: Sequence[tuple[float, float]] = ()
    ) -> tuple[Matrix, Matrix]:
        """x and y, float64[num_points] each, over the three checkpoints and `others`, with a share of each
        extent."""
        corners = [(0.0, 0.0), (self.along, self.height), (self.width, 0.0)]
        xs, ys = np.array([*corners, *others]).T
        return tuple(  # type: ignore[return-value]
            np.linspace(at.min() - margin * np.ptp(at), at.max() + margin * np.ptp(at), num_points)
            for at in (xs, ys)
        )
