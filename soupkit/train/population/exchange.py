"""What members do to each other's weights: pulls towards the mean, mixtures, and how far apart they are.

Shape suffixes: M members of this rank, n members in all, C children, D elements of a member's floating state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soupkit.task.randomness import Stream
from soupkit.train.population.flat import Flat, Row
from soupkit.train.population.grid import Grid

CHUNK = 1 << 20
"""Elements of a row that are mixed at a time."""


class Pull:
    """PAPA's pull w_j ← α w_j + (1 − α) w̄ with w̄ = (1/n) Σ_j w_j (Jolicoeur-Martineau et al. 2024,
    arXiv:2304.03094).

    One sum over this rank's rows, one all-reduce of one buffer, one lerp. The whole floating state is pulled,
    batch-norm statistics too. Memory: one row.

    With `begin` and `finish` apart, updates go on while ranks sum, and the pull comes late:
    w_j ← w_j + (1 − α)(v̄ − v_j)
    with the members v_j as they were at `begin`. So what was learned meanwhile is not pulled back, and the
    mean of the population stays what the updates make of it, as in the synchronous pull. Memory: M rows more.
    """

    def __init__(self, flat: Flat, grid: Grid) -> None:
        self.flat, self.grid = flat, grid
        self.means = {dtype: torch.empty_like(rows[0]) for dtype, rows in flat.rows.items()}
        self.before: dict[torch.dtype, Tensor] = {}
        self.share = 0.0
        self.since = -1
        self._works: list[object] = []

    @property
    def pending(self) -> bool:
        """Whether a pull was begun and not finished."""
        return self.since >= 0

    def now(self, share: float) -> None:
        """Pull every member by `share` = 1 − α."""
        for dtype, mean in self.means.items():
            rows = self.flat.rows[dtype]
            torch.sum(rows, dim=0, out=mean)
            self.grid.sum(mean)
            rows.lerp_(mean.div_(self.grid.num_members), share)

    def begin(self, share: float, *, update: int) -> None:
        """Note the members as they are after `update` and start to sum them."""
        self.start({dtype: rows.clone() for dtype, rows in self.flat.rows.items()}, share, update=update)

    def start(self, before: dict[torch.dtype, Tensor], share: float, *, update: int) -> None:
        """The same for members as they were; so a pull that was under way is begun again."""
        self.before, self.share, self.since = before, share, update
        self._works = []
        for dtype, mean in self.means.items():
            torch.sum(before[dtype], dim=0, out=mean)
            self._works.append(self.grid.begin_sum(mean))

    def finish(self) -> None:
        """Wait for the sums and apply them; nothing when none was begun."""
        if not self.pending:
            return
        for work in self._works:
            if work is not None:
                work.wait()  # type: ignore[attr-defined]
        for dtype, mean in self.means.items():
            mean.div_(self.grid.num_members)
            self.flat.rows[dtype].add_(mean - self.before[dtype], alpha=self.share)
        self.before, self.since = {}, -1


def mix(flat: Flat, grid: Grid, matrix: NDArray[np.float64]) -> None:
    """W ← C W: every member of the population becomes its row of coefficients C[n × n], in place.

    Sums in float64, chunk by chunk; one all-reduce per chunk. Memory: n chunks. Cost: n² D.
    """
    for dtype, start, mixed in _mixed(flat, grid, matrix):
        flat.rows[dtype][:, start : start + mixed.shape[1]] = mixed[grid.members.start : grid.members.stop]


def mixed_row(flat: Flat, grid: Grid, coefficients: NDArray[np.float64]) -> dict[torch.dtype, Tensor]:
    """Σ_j c_j w_j as one new row, the same on every rank; for a child that is to be scored."""
    row = {dtype: torch.empty_like(rows[0]) for dtype, rows in flat.rows.items()}
    for dtype, start, mixed in _mixed(flat, grid, coefficients[None]):
        row[dtype][start : start + mixed.shape[1]] = mixed[0]
    return row


def _mixed(flat: Flat, grid: Grid, matrix: NDArray[np.float64]) -> Iterator[tuple[torch.dtype, int, Tensor]]:
    """(dtype, start, C W[:, start : start + CHUNK] float64[C × chunk])."""
    own = torch.from_numpy(np.ascontiguousarray(matrix[:, grid.members.start : grid.members.stop]))
    for dtype, rows in flat.rows.items():
        factors = own.to(rows.device)
        for start in range(0, rows.shape[1], CHUNK):
            mixed = factors @ rows[:, start : start + CHUNK].double()
            grid.sum(mixed)
            yield dtype, start, mixed


def mutate(flat: Flat, row: Row, scale: float, *, seed: tuple[int, ...], normalize: bool) -> None:
    """w ← w + scale · N(0, 1) for the parameters of one row, in place (Cui et al. 2018, arXiv:1810.06773).

    normalize: the noise of each tensor is in units of the tensor's root mean square. The noise is a function
    of `seed`.
    """
    words = np.random.SeedSequence([seed[0], Stream.MUTATION, *seed[1:]]).generate_state(2)
    generator = torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]))
    for span in flat.spans.values():
        if span.offset >= flat.num_parameters[span.dtype]:
            continue
        weights = row[span.dtype][span.offset : span.offset + span.shape.numel()]
        noise = torch.randn(len(weights), generator=generator).to(weights)
        unit = float(weights.double().square().mean().sqrt()) if normalize and len(weights) else 1.0
        weights.add_(noise, alpha=scale * unit)


def gram(flat: Flat, grid: Grid) -> NDArray[np.float64]:
    """G = W Wᵀ over the parameters of all members, float64[n × n]. Cost: n² D, and an all-reduce of n D
    elements."""
    n, first, end = grid.num_members, grid.members.start, grid.members.stop
    found = np.zeros((n, n))
    for dtype, rows in flat.rows.items():
        for start in range(0, flat.num_parameters[dtype], CHUNK):
            stop = min(start + CHUNK, flat.num_parameters[dtype])
            chunk = torch.zeros(n, stop - start, dtype=torch.float64, device=rows.device)
            chunk[first:end] = rows[:, start:stop]
            grid.sum(chunk)
            found += (chunk @ chunk.T).cpu().numpy()
    return found


def similarity(products: NDArray[np.float64]) -> tuple[float, float]:
    """The mean cosine and the mean distance of all pairs, of G = W Wᵀ; (1, 0) for a single member."""
    n = len(products)
    if n < 2:
        return 1.0, 0.0
    i, j = np.triu_indices(n, k=1)
    norms = np.diag(products)
    cosines = products[i, j] / np.sqrt(norms[i] * norms[j])
    distances = np.sqrt(np.maximum(norms[i] + norms[j] - 2 * products[i, j], 0))
    return float(cosines.mean()), float(distances.mean())


def everyone(flat: Flat, grid: Grid) -> list[dict[str, Tensor]]:
    """Copies of all members as named tensors, on every rank. Memory: n rows."""
    rows = {}
    for dtype, own in flat.rows.items():
        rows[dtype] = torch.zeros(grid.num_members, own.shape[1], dtype=dtype, device=own.device)
        rows[dtype][grid.members.start : grid.members.stop] = own
        grid.sum(rows[dtype])
    return [flat.tensors({dtype: all_[j] for dtype, all_ in rows.items()}) for j in range(grid.num_members)]
