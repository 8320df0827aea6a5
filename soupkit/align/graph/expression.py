"""Axis expressions: how the positions of an axis are made of the units of permutation groups.

Atom            the units of one group, or pinned positions
Product         row-major: position = (position in the first factor) · (size of the rest) + …
Concat          one part after the other
Blocks          k equal blocks that a group permutes, each with an expression of its own for what is inside

Index recipes: position i of the permuted axis takes the old position index[i]. For Blocks with block
permutation b and parts P_j, index = concat_j (b[j] · m + index(P_j)): blocks move first, then the units at
each place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soupkit.jsons import Json, JsonView

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Atom:
    """The units of one group; `group` is None for positions that must stay."""

    group: str | None
    size: int


@dataclass(frozen=True)
class Product:
    """Factors in row-major order, the last one varying fastest."""

    factors: tuple[AxisExpr, ...]

    @property
    def size(self) -> int:
        """The number of positions."""
        return math.prod(factor.size for factor in self.factors)


@dataclass(frozen=True)
class Concat:
    """Parts one after the other."""

    parts: tuple[AxisExpr, ...]

    @property
    def size(self) -> int:
        """The number of positions."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Blocks:
    """Equal blocks, permuted whole by `group`; parts[j] is what is inside the block at place j."""

    group: str
    parts: tuple[AxisExpr, ...]

    @property
    def size(self) -> int:
        """The number of positions."""
        return sum(part.size for part in self.parts)


AxisExpr = Atom | Product | Concat | Blocks


def index_of(expression: AxisExpr, permutation: Mapping[str, Index]) -> Index:
    """The gather (int64[size]) that a permutation of the groups means for an axis."""
    match expression:
        case Atom(group, size):
            moved = permutation.get(group) if group is not None else None
            return np.arange(size) if moved is None else np.asarray(moved, dtype=np.int64)
        case Product(factors):
            index = np.zeros(1, dtype=np.int64)
            for factor in factors:
                index = (index[:, None] * factor.size + index_of(factor, permutation)).reshape(-1)
            return index
        case Concat(parts):
            starts = np.cumsum([0, *(part.size for part in parts)])
            return np.concatenate(
                [index_of(part, permutation) + start for part, start in zip(parts, starts, strict=False)]
            )
        case Blocks(group, parts):
            places = permutation.get(group, np.arange(len(parts)))
            size = parts[0].size
            return np.concatenate(
                [
                    index_of(part, permutation) + int(place) * size
                    for part, place in zip(parts, places, strict=True)
                ]
            )


def names_in(expression: AxisExpr) -> tuple[str, ...]:
    """The groups that an expression names, each once, in order."""
    return tuple(dict.fromkeys(name for name, _ in sizes_in(expression)))


def sizes_in(expression: AxisExpr) -> Iterator[tuple[str, int]]:
    """Every mention of a group, with the size that it is taken to have."""
    if isinstance(expression, Atom):
        if expression.group is not None:
            yield expression.group, expression.size
        return
    if isinstance(expression, Blocks):
        yield expression.group, len(expression.parts)
    for child in expression.factors if isinstance(expression, Product) else expression.parts:
        yield from sizes_in(child)


def occurrences(expression: AxisExpr, group: str) -> list[Index]:
    """For each time that a group occurs: the positions (int64[size, m]) of each of its units."""
    match expression:
        case Atom(name, size):
            return [np.arange(size, dtype=np.int64)[:, None]] if name == group else []
        case Product(factors):
            return [
                found
                for number, factor in enumerate(factors)
                for found in _in_product(factors, number, factor, group)
            ]
        case Concat(parts):
            return _in_parts(parts, group)
        case Blocks(name, parts):
            own = (
                [np.arange(expression.size, dtype=np.int64).reshape(len(parts), -1)] if name == group else []
            )
            return own + _in_parts(parts, group)


def _in_product(factors: tuple[AxisExpr, ...], number: int, factor: AxisExpr, group: str) -> list[Index]:
    before = np.arange(math.prod(other.size for other in factors[:number]))
    num_after = math.prod(other.size for other in factors[number + 1 :])
    outer, inner = before * factor.size * num_after, np.arange(num_after)
    return [
        (positions[:, None, :, None] * num_after + outer[:, None, None] + inner).reshape(len(positions), -1)
        for positions in occurrences(factor, group)
    ]


def _in_parts(parts: tuple[AxisExpr, ...], group: str) -> list[Index]:
    starts = np.cumsum([0, *(part.size for part in parts)])
    return [
        positions + start
        for part, start in zip(parts, starts, strict=False)
        for positions in occurrences(part, group)
    ]


def pinned(expression: AxisExpr, groups: Collection[str]) -> AxisExpr:
    """The expression with some groups pinned; blocks that no longer move become a Concat of what is inside
    them."""
    match expression:
        case Atom(group, size):
            return Atom(None, size) if group in groups else expression
        case Product(factors):
            return Product(tuple(pinned(factor, groups) for factor in factors))
        case Concat(parts):
            return Concat(tuple(pinned(part, groups) for part in parts))
        case Blocks(group, parts):
            inner = tuple(pinned(part, groups) for part in parts)
            return Concat(inner) if group in groups else Blocks(group, inner)


def to_json(expression: AxisExpr) -> Json:
    """An expression as JSON-able values."""
    match expression:
        case Atom(group, size):
            return {"group": group, "size": size}
        case Product(factors):
            return {"product": [to_json(factor) for factor in factors]}
        case Concat(parts):
            return {"concat": [to_json(part) for part in parts]}
        case Blocks(group, parts):
            return {"blocks": group, "parts": [to_json(part) for part in parts]}


def from_json(values: JsonView) -> AxisExpr:
    """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    if "product" in values:
        return Product(tuple(from_json(factor) for factor in values["product"]))
    if "concat" in values:
        return Concat(tuple(from_json(part) for part in values["concat"]))
    if "blocks" in values:
        parts = tuple(from_json(part) for part in values["parts"])
        if len({part.size for part in parts}) != 1:
            raise ValueError(f"blocks of {values['blocks']!r} differ in size")
        return Blocks(str(values["blocks"]), parts)
    group, size = values["group"], values["size"]
    if not (group is None or isinstance(group, str)) or not isinstance(size, int) or size < 0:
        raise ValueError(f"{values!r} is no axis expression")
    return Atom(group, size)
