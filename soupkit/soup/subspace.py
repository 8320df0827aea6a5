"""`Subspace`: all soups of some checkpoints, as a centre and directions that stay in memory in a compact
form.

    w_b = γ_b c_b + Σ_k β_kb d_kb,   d_k = w_k − c,   so w = Σ_k C_kb w_kb with C = β + (γ − Σ_k β) C_c,

where C_c are the centre's own coefficients. Differences are small, so a compact form of them rounds little;
the centre stays float32. Shape suffixes: K ingredients, B blocks, D parameters, R and C rows and columns of a
tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soupkit.checkpoint.dtypes import NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import read_chunk, slots_of
from soupkit.events import Advanced, Finished, Report, Started, silent
from soupkit.merge.mixture import Mixture
from soupkit.merge.stream import stream
from soupkit.merge.writer import StreamOptions
from soupkit.soup.blocks import Layout, Span
from soupkit.soup.resident import (
    SCRATCH,
    Allocate,
    Bfloat16Rows,
    DiskRows,
    Float32Rows,
    Form,
    Int8Rows,
    Rows,
    rows_at_once,
)
from soupkit.world import ALONE, World

READ = 1 << 20
"""Elements read from a checkpoint at a time while directions are made."""


@dataclass(frozen=True)
class Ingredients:
    """K checkpoints of the same tensors, and the span that their soups vary in."""

    checkpoints: Sequence[Mapping[str, Array]]
    layout: Layout

    def __len__(self) -> int:
        return len(self.checkpoints)


class Subspace:
    """The span of the rows of some ingredients; each rank holds its share of the directions.

    center_KB: the centre's coefficients over all ingredients. rows: which ingredients have directions
    (default: all). Memory of a rank: 4 D + its rows · D · bytes of the form + a scratch of a few MB. Cost:
    every own checkpoint is read twice. `norms` float64[rows, B] are the lengths ‖d_kb‖ before rounding; zero
    where a block is the centre's.
    """

    def __init__(
        self,
        ingredients: Ingredients,
        center_KB: np.ndarray,
        *,
        rows: Sequence[int] | None = None,
        form: Form = "float32",
        world: World = ALONE,
        device: torch.device | None = None,
        allocate: Allocate | None = None,
        report: Report = silent,
    ) -> None:
        self.layout = ingredients.layout
        self.rows = list(range(len(ingredients))) if rows is None else list(rows)
        self.world = world
        self._allocate = allocate or (lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device))
        self._ingredients = ingredients
        self._own = [self.rows[k] for k in world.share(len(self.rows))]
        self.center_KB = center_KB
        self.center = self._allocate((self.layout.num_parameters,), torch.float32)
        self._stream_center(center_KB)
        widest = max((span.matrix[1] for span in self.layout.spans), default=0)
        scratch = self._allocate(
            (max(SCRATCH, widest * len(self._own)) if form in ("bfloat16", "int8") else 0,), torch.float32
        )
        self._rows = {span.name: self._make_rows(span, form, scratch) for span in self.layout.spans}
        self.norms = self._load(report)

    @torch.no_grad()
    def point(self, beta_KB: Tensor, gamma_B: Tensor, *, out: Tensor) -> None:
        """Write w of these coordinates (float64[K, B], float64[B]) to `out`, float32[D], on every rank.

        One pass over the own directions, and one all-reduce of D numbers.
        """
        beta_KB, gamma = self._share(beta_KB).to(out), gamma_B.tolist()
        for span in self.layout.spans:
            part = out[span.slice]
            if self.world.is_main:  # once: the sum over ranks would add it for each of them
                torch.mul(self.center[span.slice], gamma[span.block], out=part)
            else:
                part.zero_()
            matrix_RC, column_K = part.view(span.matrix), beta_KB[:, span.block].contiguous()
            for rows in self._pieces(span):
                self._rows[span.name].add(matrix_RC[rows], rows, column_K)
        self.world.all_reduce(out)

    @torch.no_grad()
    def pullback(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """From ∂L/∂w, float32[D], to (∂L/∂β float64[K, B], ∂L/∂γ float64[B]): ⟨d_kb, g_b⟩ and ⟨c_b, g_b⟩.

        One pass over the own directions, and one all-reduce of the small result. The gradient must be the
        same on every rank.
        """
        shape = (
            len(self.rows) + 1,
            self.layout.num_blocks,
        )  # on the device: a copy per tensor would wait for it
        sums = torch.zeros(shape, dtype=torch.float64, device=gradient.device)
        share = self.world.share(len(self.rows))
        for span in self.layout.spans:
            part = gradient[span.slice]
            matrix_RC = part.view(span.matrix)
            for rows in self._pieces(span):
                products = self._rows[span.name].project(matrix_RC[rows], rows)
                sums[share.start : share.stop, span.block] += products
            if self.world.is_main:
                sums[-1, span.block] += torch.dot(self.center[span.slice], part)
        found = sums.cpu()
        self.world.all_reduce(found)
        return found[:-1], found[-1]

    def coefficients(self, beta_KB: np.ndarray, gamma_B: np.ndarray) -> np.ndarray:
        """The coefficients float64[all K, B] of that point over all ingredients: what a Mixture holds."""
        # d_k = w_k − c: what β adds to w_k it takes from the centre, so from all that this is made of.
        total: np.ndarray = (gamma_B - beta_KB.sum(0)) * self.center_KB
        np.add.at(total, self.rows, beta_KB)
        return total

    def _share(self, values_KB: Tensor) -> Tensor:
        share = self.world.share(len(self.rows))
        return values_KB[share.start : share.stop]

    def _pieces(self, span: Span) -> Iterator[slice]:
        """Stretches of rows that are widened together."""
        num_rows, num_columns = span.matrix
        step = rows_at_once(num_columns, max(1, len(self._own)))
        for start in range(0, num_rows, step):
            yield slice(start, min(start + step, num_rows))

    def _make_rows(self, span: Span, form: Form, scratch: Tensor) -> Rows:
        shape = (len(self._own), *span.matrix)
        if form == "float32":
            return Float32Rows(shape, self._allocate)
        if form == "bfloat16":
            return Bfloat16Rows(shape, self._allocate, scratch)
        if form == "int8":
            return Int8Rows(shape, self._allocate, scratch)
        return DiskRows(len(self._own), lambda k, rows: self._differences(k, span, rows))

    def _stream_center(self, center_KB: np.ndarray) -> None:
        """Σ_k C_kb w_kb of the own share of the ingredients, then the sum over ranks."""
        share = [k for k in self.world.share(len(self._ingredients)) if np.any(center_KB[k] != 0)]
        self.center.zero_()
        if share:
            mixture = Mixture(tuple(f"{k:09d}" for k in share), center_KB[share], 1.0, self.layout.blocks)
            slots = {span.name: Slot("F32", span.shape) for span in self.layout.spans}
            options = StreamOptions(threads=self.world.num_threads, hash=False)
            sources = [self._ingredients.checkpoints[k] for k in share]
            stream(sources, mixture, _Flat(self.center, self.layout), slots=slots, options=options)
        self.world.all_reduce(self.center)

    def _load(self, report: Report) -> np.ndarray:
        """Read every own checkpoint once more, keep its differences, and return all norms."""
        share, squares = self.world.share(len(self.rows)), np.zeros((len(self.rows), self.layout.num_blocks))
        report(Started("loading directions", len(self._own), "checkpoints"))
        for k in range(len(self._own)):
            for span in self.layout.spans:
                step = max(1, READ // max(1, span.matrix[1]))
                for start in range(0, span.matrix[0], step):
                    rows = slice(start, min(start + step, span.matrix[0]))
                    differences_RC = self._differences(k, span, rows)
                    self._rows[span.name].keep(k, rows, differences_RC)
                    flat = differences_RC.view(-1)
                    squares[share.start + k, span.block] += float(torch.dot(flat, flat))
            report(Advanced("loading directions"))
        report(Finished("loading directions"))
        total = torch.from_numpy(squares)
        self.world.all_reduce(total)
        norms: np.ndarray = np.sqrt(total.numpy())
        return norms

    def _differences(self, k: int, span: Span, rows: slice) -> Tensor:
        """w_k − c for some rows of one tensor, float32 on the device."""
        source, num_columns = self._ingredients.checkpoints[self._own[k]], span.matrix[1]
        start, num = rows.start * num_columns, (rows.stop - rows.start) * num_columns
        values = np.empty(num, NUMPY_DTYPES[slots_of(source)[span.name].dtype])
        read_chunk(source, span.name, start, values)
        wide = torch.from_numpy(values.astype(np.float32, copy=False)).to(self.center.device)
        # From the centre as it is kept: where Σ_k β_k = γ it cancels, and its rounding with it.
        wide -= self.center[span.start + start : span.start + start + num]
        return wide.view(rows.stop - rows.start, num_columns)


class _Flat:
    """A sink of the merge engine that fills the flat vector."""

    def __init__(self, flat: Tensor, layout: Layout) -> None:
        self._flat = flat
        self._starts = {span.name: span.start for span in layout.spans}

    def write(self, name: str, start: int, values: Array) -> None:
        """Take the elements of tensor `name` from number `start` on."""
        begin = self._starts[name] + start
        self._flat[begin : begin + values.size] = torch.from_numpy(values)
