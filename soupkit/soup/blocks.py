"""Blocks: which tensors share a coefficient, and where each lies in the flat vector of all weights.

Shape suffixes: K ingredients, D parameters, B blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from soupkit.checkpoint.dtypes import FLOATING
from soupkit.checkpoint.header import Slot
from soupkit.merge.mixture import BATCH_NORM_STATISTICS, Mixture
from soupkit.recipe.settings import layer_of
from soupkit.recipe.shared import check_blocks


@dataclass(frozen=True)
class Span:
    """One tensor of the span: its elements start … start + num_elements of the flat vector, and its block."""

    name: str
    shape: tuple[int, ...]
    start: int
    block: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def slice(self) -> slice:
        return slice(self.start, self.start + self.num_elements)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the tensor as a matrix: outputs × the rest; leading ones are passed over."""
        shape = self.shape
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        rows = shape[0] if len(shape) > 1 else 1
        return rows, self.num_elements // max(rows, 1)


@dataclass(frozen=True)
class Layout:
    """The tensors of the span in the order of the model, cut into blocks."""

    spans: tuple[Span, ...]
    num_blocks: int
    labels: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """D."""
        return sum(span.num_elements for span in self.spans)

    @property
    def blocks(self) -> dict[str, int]:
        """Tensor name → its block, as a `Mixture` takes it."""
        return {span.name: span.block for span in self.spans}

    def mixture(
        self,
        ingredients: Sequence[str],
        coefficients_KB: np.ndarray,
        names: Iterable[str],
        *,
        keep_first: bool = False,
    ) -> Mixture:
        """These coefficients of the span as a mixture of all tensors `names`.

        What lies outside the span, such as batch-norm statistics, is averaged evenly, or the first
        ingredient's.
        """
        outside = np.full((len(ingredients), 1), 1 / len(ingredients))
        if keep_first:
            outside[:] = 0
            outside[0] = 1
        blocks = self.blocks
        places = {name: blocks.get(name, self.num_blocks) for name in names}
        return Mixture(tuple(ingredients), np.hstack([coefficients_KB, outside]), 1.0, places)


def lay_out(shapes: Mapping[str, Sequence[int]], blocks: str) -> Layout:
    """Put tensors one after the other and cut them into blocks.

    blocks: "global" (one for all), "tensor" (one for each), "layer" (tensors of one numbered layer share one,
    others share one by the first part of their names), or a number: a new block begins when the current one
    holds more parameters than that (`layer-size` of Li et al. 2024, arXiv:2407.03641). Raises RecipeError for
    anything else.
    """
    labels = _labels({name: math.prod(shape) for name, shape in shapes.items()}, blocks)
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels.values()))}
    spans, start = [], 0
    for name, shape in shapes.items():
        spans.append(Span(name, tuple(shape), start, numbers[labels[name]]))
        start += spans[-1].num_elements
    return Layout(tuple(spans), len(numbers), tuple(numbers))


def lay_out_weights(slots: Mapping[str, Slot], blocks: str) -> Layout:
    """Every floating tensor but batch-norm statistics, for searches that need not know the model."""
    shapes = {
        name: slot.shape
        for name, slot in slots.items()
        if slot.dtype in FLOATING and name.rpartition(".")[2] not in BATCH_NORM_STATISTICS
    }
    return lay_out(shapes, blocks)


def _labels(sizes: Mapping[str, int], blocks: str) -> dict[str, str]:
    check_blocks(blocks)
    if blocks == "global":
        return dict.fromkeys(sizes, "all")
    if blocks == "tensor":
        return {name: name for name in sizes}
    return {name: _layer(name) for name in sizes} if blocks == "layer" else _by_size(sizes, int(blocks))


def _layer(name: str) -> str:
    stack, number = layer_of(name)
    return name.partition(".")[0] if number is None else f"{stack}.{number}"


def _by_size(sizes: Mapping[str, int], limit: int) -> dict[str, str]:
    labels, current, filled = {}, "", 0
    for name, size in sizes.items():
        if not current or filled > limit:
            current, filled = f"from {name}", 0
        labels[name] = current
        filled += size
    return labels
