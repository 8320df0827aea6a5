"""Resident forms of directions against the same sums in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from soupkit.soup.resident import (
    SCRATCH,
    Bfloat16Rows,
    DiskRows,
    Float32Rows,
    Int8Rows,
    matrix_bytes,
    rows_at_once,
)

K, R, C = 5, 6, 40
FORMS = {"float32": 2e-7, "bfloat16": 2**-8, "int8": 1 / 127, "disk": 2e-7}


def differences() -> torch.Tensor:
    values = torch.randn(K, R, C, generator=torch.Generator().manual_seed(0)) * 0.01
    values[:, 2] = 0  # a frozen row
    values[1] = 0  # an ingredient that is the centre
    return values


def filled(form: str, values: torch.Tensor) -> Any:
    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, 77, dtype=dtype)  # nothing may rely on zeros

    scratch = allocate((SCRATCH,), torch.float32)
    made: dict[str, Any] = {
        "float32": lambda: Float32Rows((K, R, C), allocate),
        "bfloat16": lambda: Bfloat16Rows((K, R, C), allocate, scratch),
        "int8": lambda: Int8Rows((K, R, C), allocate, scratch),
        "disk": lambda: DiskRows(K, lambda k, rows: values[k, rows]),
    }
    rows = made[form]()
    for k in range(K):
        for part in (slice(0, 4), slice(4, R)):
            rows.keep(k, part, values[k, part])
    return rows


@pytest.mark.parametrize("form", FORMS)
def test_add_and_project_are_the_sums_that_they_stand_for(form: str) -> None:
    """Against float64; off by no more than the form rounds each direction (of its largest value, per row)."""
    values = differences()
    rows = filled(form, values)
    coefficients = torch.tensor([0.5, -2.0, 1.5, 0.0, 0.25])
    gradient = torch.randn(R, C, generator=torch.Generator().manual_seed(1))
    largest = values.abs().max().double()
    for part in (slice(0, 2), slice(2, 3), slice(3, R)):
        out = torch.ones(R, C)
        rows.add(out[part], part, coefficients)
        exact = 1 + torch.einsum("k,krc->rc", coefficients.double(), values[:, part].double())
        bound = FORMS[form] * largest * coefficients.abs().sum() + 2e-7
        assert (out[part].double() - exact).abs().max() <= bound
        assert torch.equal(torch.cat([out[: part.start], out[part.stop :]]), torch.ones(R - len(exact), C))
        products = rows.project(gradient[part], part)
        exact = torch.einsum("krc,rc->k", values[:, part].double(), gradient[part].double())
        assert products.dtype == torch.float64
        bound = FORMS[form] * largest * gradient[part].abs().sum() + 1e-6
        assert (products - exact).abs().max() <= bound


def test_int8_rounds_each_row_by_at_most_half_a_step_of_its_own_scale() -> None:
    values = differences()
    values[0, 0] *= 1000  # one large row must not coarsen the others
    rows = filled("int8", values)
    kept = rows.codes_KRC.double() * rows.scales_KR.double()[:, :, None]
    step = values.double().abs().amax(2, keepdim=True) / 127
    assert ((kept - values).abs() <= step / 2 * (1 + 1e-5)).all()
    assert (kept[:, 2] == 0).all()
    relative = (kept - values).norm() / values.norm()
    assert 0.001 < relative < 0.01


def test_bytes_are_what_is_allocated() -> None:
    values = differences()
    assert matrix_bytes(R, C, K, "float32") == 4 * K * R * C == filled("float32", values).values_KRC.nbytes
    assert matrix_bytes(R, C, K, "bfloat16") == filled("bfloat16", values).values_KRC.nbytes
    rows = filled("int8", values)
    assert matrix_bytes(R, C, K, "int8") == rows.codes_KRC.nbytes + rows.scales_KR.nbytes
    assert matrix_bytes(R, C, K, "disk") == 0


def test_pieces_fit_into_the_scratch() -> None:
    for columns, directions in ((10, 3), (3072, 72), (SCRATCH, 4), (1, 1)):
        rows = rows_at_once(columns, directions)
        assert rows >= 1
        assert rows == 1 or rows * columns * directions <= SCRATCH
