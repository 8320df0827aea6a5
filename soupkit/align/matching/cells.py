"""Cells: a tensor cut into strided blocks, so that units can be compared without gathering them.

In a cell every dimension runs over the units of one group, over the units inside each of some blocks, or over
positions that stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from soupkit.align.graph.expression import Atom, AxisExpr, Blocks, Concat, Product


@dataclass(frozen=True)
class Inside:
    """The units inside blocks: names[j] is the group of those in the block at place j of the group
    `blocks`."""

    blocks: str
    names: tuple[str, ...]


Label = str | Inside | None
Dimension = tuple[Label, int, int]
"""What the dimension runs over (None: positions that stay), its size, and its stride in elements of the
tensor."""
Run = tuple[int, tuple[Dimension, ...]]
"""A part of an axis: where it starts, and its dimensions, outermost first."""


@dataclass(frozen=True)
class Cell:
    """A block of a contiguous tensor: where it starts, and its dimensions."""

    name: str
    offset: int
    dimensions: tuple[Dimension, ...]

    @cached_property
    def movers(self) -> tuple[str, ...]:
        """The groups that its dimensions run over, units inside blocks under the name of the blocks, each
        once."""
        labels = (label.blocks if isinstance(label, Inside) else label for label, _, _ in self.dimensions)
        return tuple(dict.fromkeys(label for label in labels if label is not None))

    @cached_property
    def num_elements(self) -> int:
        """Elements of the block."""
        return int(np.prod([size for _, size, _ in self.dimensions], dtype=np.int64))

    def places(self, label: Label) -> list[int]:
        """The numbers of the dimensions with a label."""
        return [number for number, dimension in enumerate(self.dimensions) if dimension[0] == label]

    def families(self, blocks: str) -> list[Inside]:
        """What lies inside the blocks of a group here."""
        return [
            label for label, _, _ in self.dimensions if isinstance(label, Inside) and label.blocks == blocks
        ]

    def view(self, tensor: torch.Tensor, first: Sequence[int]) -> torch.Tensor:
        """The block of `tensor`, not copied, with the dimensions number `first` in front."""
        rest = [number for number in range(len(self.dimensions)) if number not in first]
        order = [self.dimensions[number] for number in (*first, *rest)]
        sizes, strides = [size for _, size, _ in order], [stride for _, _, stride in order]
        return tensor.as_strided(sizes, strides, tensor.storage_offset() + self.offset)


def cells_of(name: str, axes: Sequence[AxisExpr]) -> list[Cell]:
    """Cut a tensor with these axes: one cell per combination of the parts of its concatenated axes."""
    runs, stride = [], 1
    for axis in reversed(axes):
        runs.append(list(runs_of(axis, stride)))
        stride *= axis.size
    return [Cell(name, *_together(parts)) for parts in itertools.product(*reversed(runs))]


def runs_of(axis: AxisExpr, stride: int = 1) -> Iterator[Run]:
    """The parts of one axis whose positions are `stride` elements apart."""
    match axis:
        case Atom(group, size):
            yield 0, ((group, size, stride),)
        case Concat(parts):
            start = 0
            for part in parts:
                yield from ((start + offset, dimensions) for offset, dimensions in runs_of(part, stride))
                start += part.size * stride
        case Product(factors):
            runs = []
            for factor in reversed(factors):
                runs.append(list(runs_of(factor, stride)))
                stride *= factor.size
            yield from (_together(parts) for parts in itertools.product(*reversed(runs)))
        case Blocks(group, parts):
            outer = (group, len(parts), parts[0].size * stride)
            for same in zip(*(runs_of(part, stride) for part in parts), strict=True):
                inner = zip(*(dimensions for _, dimensions in same), strict=True)
                yield same[0][0], (outer, *(_inside(group, alike) for alike in inner))


def _together(parts: Sequence[Run]) -> Run:
    return sum(offset for offset, _ in parts), tuple(each for _, dimensions in parts for each in dimensions)


def _inside(blocks: str, alike: Sequence[Dimension]) -> Dimension:
    """The dimension that equal blocks share. What blocks inside blocks hold keeps the order that it has."""
    labels, (first, size, stride) = [label for label, _, _ in alike], alike[0]
    if len(set(labels)) == 1:
        return first, size, stride
    names = [label for label in labels if isinstance(label, str)]
    return (Inside(blocks, tuple(names)) if len(names) == len(labels) else None), size, stride
