"""Blocks: which tensors share coefficients, and the mixture that comes of them."""

from __future__ import annotations

import numpy as np
import pytest

from soupkit.errors import RecipeError
from soupkit.soup.blocks import Span, lay_out

SHAPES = {
    "stem.weight": (4, 3),
    "layers.0.a": (5,),
    "layers.0.b": (2, 2),
    "layers.1.a": (5,),
    "head.weight": (2, 5),
    "head.bias": (2,),
}


def grouped(blocks: str) -> list[list[str]]:
    layout = lay_out(SHAPES, blocks)
    names = [[span.name for span in layout.spans if span.block == b] for b in range(layout.num_blocks)]
    assert [span.start for span in layout.spans] == [0, 12, 17, 21, 26, 36]
    assert layout.num_parameters == 38
    assert len(layout.labels) == layout.num_blocks
    return names


def test_blocks_are_what_they_are_called() -> None:
    assert grouped("global") == [list(SHAPES)]
    assert grouped("tensor") == [[name] for name in SHAPES]
    assert grouped("layer") == [
        ["stem.weight"],
        ["layers.0.a", "layers.0.b"],
        ["layers.1.a"],
        ["head.weight", "head.bias"],
    ]


def test_a_block_is_closed_once_it_exceeds_the_number_of_parameters() -> None:
    """12 + 5 > 15 closes the first; 4 + 5 = 9 and + 10 = 19 > 15 the second."""
    assert grouped("15") == [
        ["stem.weight", "layers.0.a"],
        ["layers.0.b", "layers.1.a", "head.weight"],
        ["head.bias"],
    ]
    assert grouped("1000") == [list(SHAPES)]
    assert len(grouped("1")) == 6


@pytest.mark.parametrize("blocks", ["", "0", "-3", "tensors", "1.5"])
def test_what_is_no_division_is_refused(blocks: str) -> None:
    with pytest.raises(RecipeError, match="blocks is"):
        lay_out(SHAPES, blocks)


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((6, 2, 3, 3), (6, 18)),
        ((7,), (1, 7)),
        ((), (1, 1)),
        ((1, 5, 4), (5, 4)),
        ((1, 1, 9), (1, 9)),
        ((3, 0), (3, 0)),
    ],
)
def test_a_tensor_is_a_matrix_of_outputs_and_the_rest(
    shape: tuple[int, ...], matrix: tuple[int, int]
) -> None:
    assert Span("w", shape, 0, 0).matrix == matrix


def test_a_mixture_averages_what_is_outside_the_span() -> None:
    layout = lay_out({"a": (2,), "b": (2,)}, "tensor")
    coefficients = np.array([[0.25, -1.0], [0.75, 2.0]])
    mixture = layout.mixture(["x", "y"], coefficients, ["a", "b", "running_mean"])
    assert [mixture.column(name).tolist() for name in ("a", "b", "running_mean")] == [
        [0.25, 0.75],
        [-1, 2],
        [0.5, 0.5],
    ]
    kept = layout.mixture(["x", "y"], coefficients, ["a", "b", "running_mean"], keep_first=True)
    assert kept.column("running_mean").tolist() == [1, 0]
