"""Read permutation groups off the axes of the parameters: free symbols become groups with names, families and
kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from soupkit.align.graph.axes import (
    Node,
    Plus,
    Symbol,
    Times,
    Varying,
    children,
    depends,
    is_pinned,
    members,
    pin,
    resolve,
    size,
    symbols,
    times,
)
from soupkit.align.graph.expression import Atom, AxisExpr, Blocks, Concat, Product
from soupkit.align.spec import Group, PermutationSpec, Pinned
from soupkit.jsons import JsonView

Chain = tuple[tuple[Symbol, int], ...]
"""The blocks that something is inside of, outermost first, each with the place."""


def build_spec(state: Mapping[str, Sequence[Node]], *, notes: JsonView | None = None) -> PermutationSpec:
    """The spec of a network whose tensors have these axes.

    A group is named after the first axis that it appears on: "layer1.0.conv1.weight:0", with ".blocks",
    ".units[3]", "[1]" for what it is of that axis.
    """
    while _pin_uneven(state):
        pass
    builder = _Builder()
    for tensor, nodes in state.items():
        for number, node in enumerate(nodes):
            builder.visit_once(node, f"{tensor}:{number}")
    axes = {tensor: tuple(map(builder.expression_once, nodes)) for tensor, nodes in state.items()}
    return PermutationSpec(builder.groups, axes, tuple(_pinned(state)), dict(notes or {}))


def _pinned(state: Mapping[str, Sequence[Node]]) -> Iterator[Pinned]:
    for tensor, nodes in state.items():
        for number, node in enumerate(nodes):
            reasons = [
                symbol.reason for symbol in symbols(node) if symbol.reason is not None and symbol.size > 1
            ]
            for reason in dict.fromkeys(reasons):
                yield Pinned(tensor, number, reason)


def blocks_of(node: Times) -> tuple[Symbol, list[Node]] | None:
    """The leading factor and what is inside each of its blocks, where that differs from block to block."""
    head, rest = node.factors[0], times(*node.factors[1:])
    if isinstance(head, Symbol) and depends(rest, head):
        return head, members(rest, head)
    return None


def _pin_uneven(state: Mapping[str, Sequence[Node]]) -> bool:
    """Pin blocks that move but differ in what is inside; whether any were found.

    A block may take another's place only if every one of its units can take the place of one there: all
    blocks have the same form, and a symbol inside a block always is inside that block, in company of the same
    symbols of the others.
    """
    rows: dict[Symbol, tuple[Symbol, ...]] = {}
    chains: dict[Symbol, Chain] = {}
    uneven: set[Symbol] = set()
    distinct = {id(found): found for nodes in state.values() for found in map(resolve, nodes)}
    for node in distinct.values():
        uneven |= {head for head, inner in _all_blocks(node) if not _even(inner, rows)}
        for symbol, chain in _chains(node, ()):
            if symbol.reason is None and chains.setdefault(symbol, chain) != chain:
                uneven |= {head for head, _ in set(chains[symbol]) ^ set(chain)}
    for head in uneven:
        pin(head, "its blocks are not alike")
    return bool(uneven)


def _even(inner: Sequence[Node], rows: dict[Symbol, tuple[Symbol, ...]]) -> bool:
    if len({_form(node) for node in inner}) != 1:
        return False
    for row in zip(*(symbols(node) for node in inner), strict=True):
        if row[0].reason is not None:
            continue
        known = rows.get(row[0], row)
        alike = known == row and all(rows.setdefault(symbol, known) is known for symbol in row)
        if not alike or len(set(row)) not in (1, len(row)):
            return False
    return True


def _chains(node: Node, chain: Chain) -> Iterator[tuple[Symbol, Chain]]:
    """Every symbol with the blocks that it is inside of."""
    node = resolve(node)
    if isinstance(node, Symbol):
        yield node, chain
        return
    found = blocks_of(node) if isinstance(node, Times) else None
    if found is None:
        for child in _below(node):
            yield from _chains(child, chain)
        return
    head, inner = found
    yield head, chain
    common = _common(inner)
    for place, part in enumerate(inner):
        for symbol, inside in _chains(part, (*chain, (head, place))):
            yield symbol, chain if symbol in common else inside


def _below(node: Node) -> tuple[Node, ...]:
    """The leading factor and the rest of a product, which may be blocks; the parts of anything else."""
    return (node.factors[0], times(*node.factors[1:])) if isinstance(node, Times) else children(node)


def _common(inner: Sequence[Node]) -> set[Symbol]:
    """The symbols that all blocks share."""
    return set.intersection(*(set(symbols(part)) for part in inner))


def _form(node: Node) -> object:
    """The structure of an expression without the identity of its symbols."""
    node = resolve(node)
    match node:
        case Symbol():
            return (node.size, node.reason is not None)
        case Times():
            found = blocks_of(node)
            return ("times", tuple(map(_form, found[1] if found else _below(node))))
        case Plus(parts) | Varying(_, parts):
            return ("plus", tuple(map(_form, parts)))


def _all_blocks(node: Node) -> Iterator[tuple[Symbol, list[Node]]]:
    node = resolve(node)
    if isinstance(node, Symbol):
        return
    found = blocks_of(node) if isinstance(node, Times) else None
    if found is not None:
        yield found
        for part in found[1]:
            yield from _all_blocks(part)
        return
    for child in _below(node):
        yield from _all_blocks(child)


class _Builder:
    """Names symbols in the order in which they are met, and writes expressions of named groups."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self._names: dict[Symbol, str] = {}
        self._met: dict[int, Node] = {}  # axes that are tied share one expression, which may be large
        self._written: dict[int, AxisExpr] = {}

    def visit_once(self, node: Node, label: str) -> None:
        """`visit` an axis that was not met before."""
        node = resolve(node)
        if id(node) not in self._met:
            self._met[id(node)] = node
            self.visit(node, label, ())

    def expression_once(self, node: Node) -> AxisExpr:
        """`expression` of an axis that was met, made once."""
        node = resolve(node)
        if id(node) not in self._written:
            self._met[id(node)] = node
            self._written[id(node)] = self.expression(node)
        return self._written[id(node)]

    def visit(self, node: Node, label: str, chain: Chain) -> None:
        """Name what is free in an expression; chain: the blocks that it is inside of."""
        node = resolve(node)
        if isinstance(node, Symbol):
            self._enter(node, label, chain, "units")
        elif not isinstance(node, Times):
            for number, part in enumerate(node.parts):
                self.visit(part, f"{label}.part{number}", chain)
        elif found := blocks_of(node):
            self._visit_blocks(*found, label, chain)
        else:
            self._visit_product(node, label, chain)

    def expression(self, node: Node) -> AxisExpr:
        """An axis in terms of named groups."""
        node = resolve(node)
        if isinstance(node, Symbol):
            return Atom(self._names.get(node), node.size)
        if all(is_pinned(symbol) for symbol in symbols(node)):
            return Atom(None, size(node))
        if isinstance(node, Plus):
            return Concat(tuple(map(self.expression, node.parts)))
        assert isinstance(node, Times), "an axis of a parameter varies over nothing outside of it"
        if found := blocks_of(node):
            return Blocks(self._names[found[0]], tuple(map(self.expression, found[1])))
        head, rest = self.expression(node.factors[0]), self.expression(times(*node.factors[1:]))
        return Product((head, *(rest.factors if isinstance(rest, Product) else (rest,))))

    def _visit_blocks(self, head: Symbol, inner: Sequence[Node], label: str, chain: Chain) -> None:
        self._enter(head, f"{label}.blocks", chain, "blocks")
        for symbol in sorted(_common(inner), key=lambda symbol: symbol.number):
            self._enter(symbol, f"{label}.units", chain, "units")
        for place, part in enumerate(inner):
            self.visit(part, f"{label}.units", (*chain, (head, place)))

    def _visit_product(self, node: Times, label: str, chain: Chain) -> None:
        head, rest = node.factors[0], times(*node.factors[1:])
        moving = not is_pinned(head) and any(not is_pinned(symbol) for symbol in symbols(rest))
        if isinstance(head, Symbol):
            self._enter(head, f"{label}.blocks" if moving else label, chain, "blocks" if moving else "units")
        else:
            self.visit(head, label, chain)
        self.visit(rest, f"{label}.units" if moving else label, chain)

    def _enter(self, symbol: Symbol, label: str, chain: Chain, kind: Literal["units", "blocks"]) -> None:
        if symbol in self._names or symbol.reason is not None:
            return
        name = label + "".join(f"[{place}]" for _, place in chain)
        while name in self.groups:
            name += "'"
        self._names[symbol] = name
        inside = (self._names[chain[-1][0]], chain[-1][1]) if chain else None
        self.groups[name] = Group(name, symbol.size, kind, label if chain else name, inside)
