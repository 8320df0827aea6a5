"""The axis algebra: what is known of the order of the positions along each axis of each tensor of a network.

Symbol    positions whose order is free, until the symbol is pinned or bound to another expression
Times     row-major product of factors
Plus      parts one after the other
Varying   positions whose order may differ with the position along another axis, `over`: parts[j] holds at j
of `over`

Symbols start one per axis of every parameter. Following the graph, two axes that an operation ties together
are unified (`.unify`); what cannot be followed is pinned, with the reason. The invariant: gather every
parameter by its axes' expressions, under any choice of one permutation per free symbol, and every
intermediate tensor is gathered by its own. Times(H, Varying(H, (D_0, D_1, …))) is a wreath product: blocks
that move whole, with free units inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

_numbers = count()


class Algebra:
    """What all expressions share.

    now: counts what may make a normal form stale: symbols that are bound or pinned. unify: `.unify.unify`,
    which is written in terms of normal forms, as one of them is in terms of it; it is put here when the room
    is entered.
    """

    now = 0
    unify: ClassVar[Callable[[Node, Node], None]]


class Symbol:
    """Positions in an unknown order. reason: why they are pinned; None while free.

    loose: the tensor is constant along this axis, so that any order is right and nothing follows from it.
    """

    __slots__ = ("bound", "loose", "number", "reason", "size")

    def __init__(self, size: int, reason: str | None = None, *, loose: bool = False) -> None:
        self.size = size
        self.bound: Node | None = None
        self.reason = "a single position" if size == 1 and reason is None else reason
        self.loose = loose
        self.number = next(_numbers)

    def bind(self, node: Node) -> None:
        """Stand for an expression from now on."""
        self.bound = node
        Algebra.now += 1

    def pin(self, reason: str) -> None:
        """Stay as it is; the first reason is kept."""
        if self.reason is None:
            self.reason = reason
            Algebra.now += 1

    def __repr__(self) -> str:
        return f"{'!' if self.reason else 's'}{self.number}[{self.size}]"


@dataclass(frozen=True, slots=True)
class Times:
    """A row-major product."""

    factors: tuple[Node, ...]
    stamp: int = field(default=-1, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Plus:
    """A concatenation."""

    parts: tuple[Node, ...]
    stamp: int = field(default=-1, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Varying:
    """parts[j] at position j of the axis that `over` stands for."""

    over: Symbol
    parts: tuple[Node, ...]
    stamp: int = field(default=-1, compare=False, repr=False)


Node = Symbol | Times | Plus | Varying


def size(node: Node) -> int:
    """The number of positions."""
    match node:
        case Symbol():
            return node.size
        case Times(factors):
            return math.prod(map(size, factors))
        case Plus(parts):
            return sum(map(size, parts))
        case Varying(_, parts):
            return size(parts[0])


def resolve(node: Node) -> Node:
    """The normal form: symbols followed to what they are bound to, products and concatenations flat."""
    if isinstance(node, Symbol):
        if node.bound is None:
            return node
        node.bound = resolve(node.bound)
        return node.bound
    if node.stamp == Algebra.now:
        return node
    match node:
        case Times(factors):
            return times(*factors)
        case Plus(parts):
            return plus(*parts)
        case Varying(over, parts):
            return varying(over, parts)


def times(*factors: Node) -> Node:
    """A product in normal form: no single positions, and no blocks at fixed places: those are a
    concatenation."""
    now = Algebra.now
    flat: list[Node] = []
    for factor in map(resolve, factors):
        flat.extend(factor.factors if isinstance(factor, Times) else [factor] if size(factor) != 1 else [])
    for number, factor in enumerate(flat):
        rest = tuple(flat[number + 1 :])
        if rest and isinstance(factor, Plus):
            tail: Node = plus(*(times(part, *rest) for part in factor.parts))
        elif (
            isinstance(factor, Symbol) and factor.reason is not None and any(depends(x, factor) for x in rest)
        ):
            tail = plus(*map(times, *(members(other, factor) for other in rest)))
        else:
            continue
        return times(*flat[:number], tail) if number else tail
    return Times(tuple(flat), now) if len(flat) > 1 else flat[0] if flat else Symbol(1)


def plus(*parts: Node) -> Node:
    """A concatenation in normal form: flat."""
    now = Algebra.now
    flat: list[Node] = []
    for part in map(resolve, parts):
        flat.extend(part.parts if isinstance(part, Plus) else [part])
    return Plus(tuple(flat), now) if len(flat) > 1 else flat[0]


def varying(over: Node, parts: tuple[Node, ...]) -> Node:
    """A family in normal form: products and concatenations outside, members that are all the same as one."""
    now = Algebra.now
    over, parts = resolve(over), tuple(map(resolve, parts))
    first = parts[0]
    if all(is_pinned(part) for part in parts):
        for part in parts:
            if part is not first and isinstance(part, Symbol):
                part.bind(first)  # they stay for good, so one stands for all, also for what varies over them
        return first
    if all(part is first or part == first for part in parts):
        return first
    if isinstance(over, Times):
        return _varying_over_product(over, parts)
    if not isinstance(over, Symbol):
        for part in parts[1:]:
            Algebra.unify(first, part)
        return resolve(first)
    for kind, build in ((Times, times), (Plus, plus)):
        inner = [children(part) for part in parts if isinstance(part, kind)]
        if len(inner) == len(parts) and len({tuple(map(size, found)) for found in inner}) == 1:
            return build(*(varying(over, row) for row in zip(*inner, strict=True)))
    return Varying(over, parts, now)


def _varying_over_product(over: Times, parts: tuple[Node, ...]) -> Node:
    """Over the leading factor, at each of its positions over the rest."""
    head, rest = over.factors[0], times(*over.factors[1:])
    inner = size(rest)
    chunks = [parts[number : number + inner] for number in range(0, len(parts), inner)]
    rests = members(rest, head) if isinstance(head, Symbol) else [rest] * len(chunks)
    return varying(head, tuple(varying(one, chunk) for one, chunk in zip(rests, chunks, strict=True)))


def at(node: Node, over: Node, place: int) -> Node:
    """What holds at one position of `over`."""
    node = resolve(node)
    match node:
        case Symbol():
            return node
        case Times(factors):
            return times(*(at(factor, over, place) for factor in factors))
        case Plus(parts):
            return plus(*(at(part, over, place) for part in parts))
        case Varying(own, parts):
            if resolve(own) is over:
                return at(parts[place], over, place)
            return varying(own, tuple(at(part, over, place) for part in parts))


def members(node: Node, over: Symbol) -> list[Node]:
    """What holds at every position of `over`: `at` for all of them in one pass."""
    node = resolve(node)
    if not depends(node, over):
        return [node] * over.size
    assert not isinstance(node, Symbol)
    if isinstance(node, Varying) and node.over is over:
        return [at(part, over, place) for place, part in enumerate(node.parts)]
    rows = zip(*(members(child, over) for child in children(node)), strict=True)
    if isinstance(node, Varying):
        return [varying(node.over, row) for row in rows]
    build = times if isinstance(node, Times) else plus
    return [build(*row) for row in rows]


def children(node: Node) -> tuple[Node, ...]:
    """The factors, parts or members of an expression."""
    if isinstance(node, Symbol):
        return ()
    return node.factors if isinstance(node, Times) else node.parts


def is_pinned(node: Node) -> bool:
    """Whether this is a symbol that must stay as it is."""
    return isinstance(node, Symbol) and node.reason is not None


def symbols(node: Node) -> Iterator[Symbol]:
    """The symbols that the order of these positions depends on."""
    node = resolve(node)
    if isinstance(node, Symbol):
        yield node
        return
    for child in children(node):
        yield from symbols(child)


def overs(node: Node) -> Iterator[Symbol]:
    """The symbols that something in an expression varies over."""
    node = resolve(node)
    if isinstance(node, Symbol):
        return
    if isinstance(node, Varying):
        yield node.over
    for child in children(node):
        yield from overs(child)


def depends(node: Node, over: Node) -> bool:
    """Whether something in an expression varies over a symbol."""
    return any(found is over for found in overs(node))


def places(node: Node) -> Iterator[Symbol]:
    """The symbols whose position a position along an axis tells."""
    node = resolve(node)
    if isinstance(node, Symbol):
        yield node
    elif not isinstance(node, Plus):
        for child in children(node):
            yield from places(child)


def open_overs(node: Node) -> list[Symbol]:
    """The symbols that an expression varies over and that no earlier factor of it stands for."""
    node = resolve(node)
    found: dict[int, Symbol] = {}
    if isinstance(node, Times):
        known: set[int] = set()
        for factor in node.factors:
            found |= {symbol.number: symbol for symbol in open_overs(factor) if symbol.number not in known}
            known |= {symbol.number for symbol in places(factor)}
    elif isinstance(node, Plus | Varying):
        found = {symbol.number: symbol for part in node.parts for symbol in open_overs(part)}
        if isinstance(node, Varying):
            found[node.over.number] = node.over
    return list(found.values())


def pin(node: Node, reason: str) -> None:
    """Let nothing of an expression move."""
    for symbol in symbols(node):
        symbol.pin(reason)
