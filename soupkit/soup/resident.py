"""Resident forms of directions: how the differences of checkpoints to a centre are kept in memory.

Shape suffixes: K directions, R rows and C columns of one tensor as a matrix (`Span.matrix`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

Form = Literal["float32", "bfloat16", "int8", "disk"]
FORMS: tuple[Form, ...] = ("float32", "bfloat16", "int8", "disk")
"""From the most exact to the smallest: disk keeps nothing and reads every checkpoint twice in every step."""
BYTES: dict[Form, int] = {"float32": 4, "bfloat16": 2, "int8": 1, "disk": 0}
SCRATCH = 1 << 20
"""Elements that are widened at a time: 4 MB, which stays in cache."""
Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


class Rows(Protocol):
    """The directions of one tensor, [K, R, C]."""

    def keep(self, k: int, rows: slice, differences_RC: Tensor) -> None:
        """Take some rows of direction k."""

    def add(self, out_RC: Tensor, rows: slice, coefficients_K: Tensor) -> None:
        """out += Σ_k c_k d_k, for some rows."""

    def project(self, gradient_RC: Tensor, rows: slice) -> Tensor:
        """⟨d_k, gradient⟩ over some rows, float64[K]."""


def matrix_bytes(num_rows: int, num_columns: int, num_directions: int, form: Form) -> int:
    """Bytes that the directions of one tensor take."""
    scales = 4 * num_rows if form == "int8" else 0
    return num_directions * (num_rows * num_columns * BYTES[form] + scales)


def rows_at_once(num_columns: int, num_directions: int) -> int:
    """How many rows are widened together; at least one."""
    return max(1, SCRATCH // max(1, num_columns * num_directions))


class Float32Rows:
    """As they are: 4 bytes per parameter."""

    def __init__(self, shape: tuple[int, int, int], allocate: Allocate) -> None:
        self.values_KRC = allocate(shape, torch.float32)

    def keep(self, k: int, rows: slice, differences_RC: Tensor) -> None:
        self.values_KRC[k, rows] = differences_RC

    def add(self, out_RC: Tensor, rows: slice, coefficients_K: Tensor) -> None:
        part_KN = self.values_KRC[:, rows].flatten(1)
        torch.addmv(out_RC.view(-1), part_KN.T, coefficients_K, out=out_RC.view(-1))

    def project(self, gradient_RC: Tensor, rows: slice) -> Tensor:
        return (self.values_KRC[:, rows].flatten(1) @ gradient_RC.flatten()).double()


class Bfloat16Rows:
    """Rounded to 8 significant bits: 2 bytes per parameter."""

    def __init__(self, shape: tuple[int, int, int], allocate: Allocate, scratch: Tensor) -> None:
        self.values_KRC = allocate(shape, torch.bfloat16)
        self._scratch = scratch

    def keep(self, k: int, rows: slice, differences_RC: Tensor) -> None:
        self.values_KRC[k, rows] = differences_RC

    def add(self, out_RC: Tensor, rows: slice, coefficients_K: Tensor) -> None:
        torch.addmv(out_RC.view(-1), self._wide(rows).T, coefficients_K, out=out_RC.view(-1))

    def project(self, gradient_RC: Tensor, rows: slice) -> Tensor:
        return (self._wide(rows) @ gradient_RC.flatten()).double()

    def _wide(self, rows: slice) -> Tensor:
        return _widen(self.values_KRC[:, rows], self._scratch).flatten(1)


class Int8Rows:
    """q = round(127 d / max|d|) with one scale per row and direction: 1 byte per parameter.

    A direction is off by at most 1/254 of the largest difference in its row, that is by about 0.5 % in norm
    for normal differences; the centre stays exact, so the soup itself is off by that share of its distance to
    the centre.
    """

    def __init__(self, shape: tuple[int, int, int], allocate: Allocate, scratch: Tensor) -> None:
        self.codes_KRC = allocate(shape, torch.int8)
        self.scales_KR = allocate(shape[:2], torch.float32)
        self._scratch = scratch

    def keep(self, k: int, rows: slice, differences_RC: Tensor) -> None:
        scales_R = torch.linalg.vector_norm(differences_RC, torch.inf, dim=1) / 127
        factors_R = torch.where(
            scales_R > 0, 1 / scales_R, 0.0
        )  # a row without differences is zeros, not 0/0
        self.codes_KRC[k, rows] = torch.round(differences_RC * factors_R[:, None])
        self.scales_KR[k, rows] = scales_R

    def add(self, out_RC: Tensor, rows: slice, coefficients_K: Tensor) -> None:
        wide_RKC = _widen(self.codes_KRC[:, rows], self._scratch).transpose(0, 1)
        scaled_R1K = (coefficients_K[:, None] * self.scales_KR[:, rows]).T[:, None]
        out_R1C = out_RC[:, None]
        torch.baddbmm(out_R1C, scaled_R1K, wide_RKC, out=out_R1C)

    def project(self, gradient_RC: Tensor, rows: slice) -> Tensor:
        wide_RCK = _widen(self.codes_KRC[:, rows], self._scratch).permute(1, 2, 0)
        products_RK = torch.bmm(gradient_RC[:, None], wide_RCK)[:, 0]
        return (products_RK.double() * self.scales_KR[:, rows].T).sum(0)


class DiskRows:
    """Nothing is kept: every use reads every checkpoint. `read(k, rows)` gives the differences of some
    rows."""

    def __init__(self, num_directions: int, read: Callable[[int, slice], Tensor]) -> None:
        self._num_directions = num_directions
        self._read = read

    def keep(self, _k: int, _rows: slice, _differences_RC: Tensor) -> None:
        pass

    def add(self, out_RC: Tensor, rows: slice, coefficients_K: Tensor) -> None:
        for k, coefficient in enumerate(coefficients_K.tolist()):
            if coefficient:
                out_RC.add_(self._read(k, rows), alpha=coefficient)

    def project(self, gradient_RC: Tensor, rows: slice) -> Tensor:
        products = [(self._read(k, rows) * gradient_RC).sum().double() for k in range(self._num_directions)]
        return torch.stack(products) if products else gradient_RC.new_zeros(0, dtype=torch.float64)


def _widen(values_KRC: Tensor, scratch: Tensor) -> Tensor:
    """A float32 copy in reused memory."""
    wide = scratch[: values_KRC.numel()].view(values_KRC.shape)
    wide.copy_(values_KRC)
    return wide
