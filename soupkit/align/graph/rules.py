"""How operations of ATen carry axis expressions from their operands to their results: the table and its
helpers.

A rule reads a `Call` and returns the axes of the results. An operation without a rule, or one whose rule
gives up, pins all of its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soupkit.align.graph.axes import Node, Symbol, open_overs, pin, places, resolve, size
from soupkit.align.graph.unify import share, unify


class Axes(tuple[Node, ...]):
    """The axes of one tensor."""

    __slots__ = ()


Result = Axes | list[Any] | None
Shape = tuple[int, ...]


class CannotFollowError(Exception):
    """A rule meets a case that it does not know."""


@dataclass(frozen=True)
class Call:
    """One operation of the graph. arguments: by the names of its schema, tensors as their Axes.

    shapes: of the results, a tuple of sizes or a list of them. where: the operation and its module, for
    reasons.
    """

    name: str
    arguments: Mapping[str, Any]
    shapes: Any
    where: str
    in_place: bool = False
    gave_up: list[str] = field(default_factory=list)
    """What could not be followed, for the record."""

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def shape(self) -> Shape:
        """The sizes of the only result."""
        if not isinstance(self.shapes, tuple):
            raise CannotFollowError(f"{self.name} has no single result")
        return self.shapes

    def tensors(self) -> list[Axes]:
        """Every tensor among the arguments, in order."""
        return list(tensors_in(self.arguments.values()))

    def dims(self, name: str, rank: int) -> list[int]:
        """An argument that names axes, counted from the front; all axes when it names none."""
        value = self[name]
        chosen = range(rank) if value is None or value == [] else [value] if isinstance(value, int) else value
        return [number % rank for number in chosen]

    def unify(self, x: Node, y: Node) -> None:
        """Tie two axes; what cannot be reconciled is pinned in the name of this operation."""
        unify(x, y, f"tied in an order that cannot be followed by {self.where}")

    def pin(self, axes: Iterable[Node], what: str = "positions matter to") -> None:
        """Let some axes stay as they are."""
        for axis in axes:
            pin(axis, f"{what} {self.where}")

    def fixed(self, length: int) -> Symbol:
        """A new axis that stays as it is."""
        return Symbol(length, f"made by {self.where}")


Rule = Callable[[Call], Result]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table, under the names of operations without `aten.` and overload."""

    def enter(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return enter


def tensors_in(values: Iterable[object]) -> Iterator[Axes]:
    """Every tensor in nested arguments."""
    for value in values:
        if isinstance(value, Axes):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def follow(call: Call) -> Result:
    """The axes of the results of one operation; operands that cannot be followed are pinned."""
    function = RULES.get(call.name)
    try:
        if function is None:
            raise CannotFollowError(f"no rule for {call.name}")
        result = function(call)
        check_sizes(result, call.shapes)
    except (CannotFollowError, LookupError, TypeError, ValueError, AttributeError) as error:
        call.gave_up.append(f"{call.where}: {error}")
        for axes in call.tensors():
            call.pin(axes, "what becomes of it is not known in")
        result = unknown(call.shapes, call.where)
    for axes in tensors_in([result]):
        close(axes)
    return result


def check_sizes(result: Result, shapes: object) -> None:
    """Raise CannotFollowError unless the axes have the sizes that the operation's results have."""
    if isinstance(shapes, list):
        if not isinstance(result, list) or len(result) != len(shapes):
            raise CannotFollowError("another number of results")
        for one, shape in zip(result, shapes, strict=True):
            check_sizes(one, shape)
    elif isinstance(shapes, tuple) and (
        not isinstance(result, Axes) or tuple(size(axis) for axis in result) != shapes
    ):
        raise CannotFollowError("another shape")


def unknown(shapes: object, where: str) -> Result:
    """Results of which nothing may move."""
    if isinstance(shapes, list):
        return [unknown(shape, where) for shape in shapes]
    if isinstance(shapes, tuple):
        return Axes(Symbol(length, f"made by {where}") for length in shapes)
    return None


def close(axes: Sequence[Node]) -> None:
    """An axis may vary only over what exactly one other axis of the same tensor stands for."""
    for number, axis in enumerate(axes):
        for over in open_overs(axis):
            others = sum(over in set(places(other)) for k, other in enumerate(axes) if k != number)
            if others != 1 or over in set(places(axis)):
                share(axis, over, "its blocks are no longer beside it")


def mix(axes: Sequence[Node], dims: Iterable[int]) -> None:
    """An operation that mixes positions along some axes: no other axis may vary over these."""
    chosen = set(dims)
    for number in chosen:
        for over in set(places(axes[number])):
            for other, axis in enumerate(axes):
                if other != number and over in open_overs(axis):
                    share(axis, over, "its blocks are mixed")


def tie(call: Call, axes: Sequence[Node]) -> Node:
    """One order for axes of the same size; a tensor that is constant along its axis has nothing to say."""
    found: Node | None = None
    for axis in sorted(map(resolve, axes), key=lambda node: bool(open_overs(node))):
        if found is None or _is_loose(found):
            found = axis
        elif not _is_loose(axis):
            call.unify(found, axis)
    assert found is not None
    return resolve(found)


def broadcast(call: Call, operands: Sequence[Axes], shape: Shape) -> Axes:
    """The axes of an elementwise result."""
    columns: list[list[Node]] = [[Symbol(length, loose=True)] for length in shape]
    for operand in operands:
        for number, axis in enumerate(operand, start=len(shape) - len(operand)):
            if size(axis) != 1:
                columns[number].append(axis)
    order = sorted(range(len(shape)), key=lambda number: any(map(open_overs, columns[number])))
    tied = {
        number: tie(call, columns[number]) for number in order
    }  # blocks first, then what varies over them
    return Axes(resolve(tied[number]) for number in range(len(shape)))


def _is_loose(node: Node) -> bool:
    return isinstance(node, Symbol) and node.loose and node.reason is None
