"""Unification of axis expressions, and what reshapes do to them: split, cut, share.

Everything here loses freedom where it does not know better, and never correctness: what cannot be reconciled
is pinned.
"""

from __future__ import annotations

from itertools import pairwise

from soupkit.align.graph.axes import (
    Algebra,
    Node,
    Plus,
    Symbol,
    Times,
    Varying,
    members,
    open_overs,
    pin,
    places,
    plus,
    resolve,
    size,
    symbols,
    times,
    varying,
)

MAX_BLOCKS = 512
"""Blocks beyond this number get the same order of units inside; positions beyond 8 times it are pinned, not
listed."""


def unify(x: Node, y: Node, reason: str = "tied to itself in another order") -> None:
    """Let x and y stand for the same order of positions from now on."""
    x, y = resolve(x), resolve(y)
    if x is y or x == y:
        return
    if size(x) != size(y):
        _pin_both(x, y, f"sizes {size(x)} and {size(y)} were tied together")
    elif isinstance(x, Varying):
        _unify_varying(x, y, reason)
    elif isinstance(y, Varying):
        _unify_varying(y, x, reason)
    elif isinstance(x, Symbol):
        _bind(x, y, reason)
    elif isinstance(y, Symbol):
        _bind(y, x, reason)
    elif isinstance(x, Times) and isinstance(y, Times):
        _unify_products(x, y, reason)
    else:
        _unify_parts(x, y, reason)


def share(node: Node, over: Symbol, reason: str = "blocks share their units") -> None:
    """Let an expression no longer vary over a symbol."""
    first, *others = members(node, over)
    for other in others:
        unify(first, other, reason)


def split(node: Node, num: int, reason: str = "a reshape that cannot be followed") -> tuple[Node, Node]:
    """An axis as two, `num` blocks and the positions inside a block; these may then vary over the blocks."""
    node = resolve(node)
    total = size(node)
    if num == 1 or num == total:
        return (Symbol(1), node) if num == 1 else (node, Symbol(1))
    if total % num:
        raise ValueError(f"{total} positions do not make {num} blocks")
    match node:
        case Symbol():
            return _split_symbol(node, num)
        case Varying(over, parts):
            pairs = [split(part, num, reason) for part in parts]
            return varying(over, tuple(a for a, _ in pairs)), varying(over, tuple(b for _, b in pairs))
        case Times(factors):
            return _split_product(factors, num, reason)
        case Plus():
            return _split_parts(node, num, reason)


def cut(node: Node, start: int, stop: int, reason: str = "a slice that cannot be followed") -> Node:
    """The expression of positions start … stop - 1 of an axis."""
    node = resolve(node)
    total = size(node)
    if (start, stop) == (0, total):
        return node
    match node:
        case Symbol():
            if node.reason is not None:
                return Symbol(stop - start, node.reason)
            _bind(
                node,
                plus(*(Symbol(n, loose=node.loose) for n in (start, stop - start, total - stop) if n)),
                reason,
            )
            return cut(node, start, stop, reason)
        case Varying(over, parts):
            return varying(over, tuple(cut(part, start, stop, reason) for part in parts))
        case Times():
            return cut(_listed(node, reason), start, stop, reason)
        case Plus(parts):
            kept, offset = [], 0
            for part in parts:
                low, high = max(start - offset, 0), min(stop - offset, size(part))
                if low < high:
                    kept.append(cut(part, low, high, reason))
                offset += size(part)
            return plus(*kept)


def _bind(symbol: Symbol, node: Node, reason: str) -> None:
    """Let a symbol stand for an expression; what varies over another axis cannot, since the symbol has none
    beside."""
    if symbol.reason is not None:
        pin(node, symbol.reason)
    if isinstance(node, Symbol):
        node.loose = node.loose and symbol.loose
        symbol.bind(node)
        return
    if not symbol.loose:  # any order was right for a loose one; now there is one that it must follow
        for found in symbols(node):
            found.loose = False
    for over in open_overs(node):
        share(node, over)
    node = resolve(node)  # sharing unifies, and may have bound what is in the node, the symbol itself too
    if any(found is symbol for found in symbols(node)):
        pin(node, reason)
    elif symbol.bound is None:
        symbol.bind(node)
    else:
        unify(symbol, node, reason)


def _unify_varying(x: Varying, y: Node, reason: str) -> None:
    """Position by position of what x varies over; y need not vary over it: then x no longer does."""
    # y runs over that axis itself, so it has no members at single places of it: x's parts become one first.
    if any(found is x.over for found in places(y)):
        share(x, x.over)
        unify(x, y, reason)
        return
    for part, other in zip(x.parts, members(y, x.over), strict=True):
        unify(part, other, reason)


def _unify_products(x: Times, y: Times, reason: str) -> None:
    """By leading factors, splitting the larger."""
    a, b = x.factors[0], y.factors[0]  # products are row-major: only leading factors cut whole stretches
    if size(a) > size(b):
        x, y, a, b = y, x, b, a
    if size(a) == size(b):
        unify(a, b, reason)
        unify(times(*x.factors[1:]), times(*y.factors[1:]), reason)
    elif size(b) % size(a):
        _pin_both(x, y, reason)
    else:
        outer, inner = split(b, size(a), reason)
        unify(a, outer, reason)
        unify(times(*x.factors[1:]), times(inner, *y.factors[1:]), reason)


def _unify_parts(x: Node, y: Node, reason: str) -> None:
    """Concatenations, cut at each other's boundaries; a product against one has its blocks at fixed
    places."""
    listed = [node if isinstance(node, Plus) else _listed(node, reason) for node in (x, y)]
    if not all(isinstance(node, Plus) for node in listed):
        _pin_both(x, y, reason)
        return
    ends = [_ends(node) for node in listed]
    bounds = sorted({0} | ends[0] | ends[1])
    for start, stop in pairwise(bounds):
        unify(cut(listed[0], start, stop, reason), cut(listed[1], start, stop, reason), reason)


def _ends(node: Node) -> set[int]:
    total, found = 0, set()
    for part in node.parts if isinstance(node, Plus) else (node,):
        total += size(part)
        found.add(total)
    return found


def _listed(node: Node, reason: str) -> Node:
    """A product as a concatenation: its leading factor is pinned."""
    assert isinstance(node, Times)
    head = node.factors[0]
    pin(head, reason)
    node = resolve(node)
    if not isinstance(node, Times):
        return node
    if size(head) > 8 * MAX_BLOCKS:
        pin(node, reason)
        return plus(*(Symbol(1, reason) for _ in range(size(node))))
    rest = times(*node.factors[1:])
    return plus(*(rest for _ in range(size(head))))


def _split_symbol(symbol: Symbol, num: int) -> tuple[Node, Node]:
    inner = symbol.size // num
    if symbol.reason is not None:
        return Symbol(num, symbol.reason), Symbol(inner, symbol.reason)
    blocks = Symbol(num, loose=symbol.loose)
    # The most that a split can leave free: blocks in any order, the units of each in one of their own.
    if symbol.loose or num > MAX_BLOCKS:
        units: Node = Symbol(inner, loose=symbol.loose)
    else:
        units = varying(blocks, tuple(Symbol(inner) for _ in range(num)))
    symbol.bind(Times((blocks, units)))
    return blocks, units


def _split_product(factors: tuple[Node, ...], num: int, reason: str) -> tuple[Node, Node]:
    head, first = factors[0], size(factors[0])
    if first == num:
        return head, times(*factors[1:])
    if num % first == 0:
        outer, inner = split(times(*factors[1:]), num // first, reason)
        return times(head, outer), inner
    if first % num == 0:
        outer, inner = split(head, num, reason)
        return outer, times(inner, *factors[1:])
    node = times(*factors)
    pin(node, reason)
    return Symbol(num, reason), Symbol(size(node) // num, reason)


def _split_parts(node: Plus, num: int, reason: str) -> tuple[Node, Node]:
    """Blocks of a concatenation: at fixed places where they cross or fill its parts, else concatenated
    themselves."""
    inner = size(node) // num
    whole = all(size(part) % inner == 0 for part in node.parts)
    if whole and any(size(part) > inner for part in node.parts):
        pairs = [split(part, size(part) // inner, reason) for part in node.parts]
        units = pairs[0][1]
        for outer, found in pairs:
            for over in (symbol for symbol in open_overs(found) if symbol in set(places(outer))):
                share(found, over)
            unify(units, found, reason)
        return plus(*(outer for outer, _ in pairs)), resolve(units)
    if num > MAX_BLOCKS:
        pin(node, reason)
        return Symbol(num, reason), Symbol(inner, reason)
    blocks = Symbol(num, "blocks at fixed places of a concatenation")
    parts = tuple(cut(node, j * inner, (j + 1) * inner, reason) for j in range(num))
    return blocks, varying(blocks, parts)


def _pin_both(x: Node, y: Node, reason: str) -> None:
    pin(x, reason)
    pin(y, reason)


Algebra.unify = unify
