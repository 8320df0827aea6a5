"""Rules of operations that take some positions: selections, slices, splits, rolls, look-ups by index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from soupkit.align.graph.axes import Symbol, Times, at, depends, resolve, size, varying
from soupkit.align.graph.rules import Axes, Call, CannotFollowError, Result, mix, rule
from soupkit.align.graph.unify import cut


def chosen(call: Call, x: Axes, dim: int, indices: Sequence[int]) -> Axes:
    """Some positions along one axis. Blocks that others vary over are then at fixed places."""
    axis = resolve(x[dim])
    others = [other for number, other in enumerate(x) if number != dim]
    if isinstance(axis, Symbol) and any(depends(other, axis) for other in others):
        call.pin([axis], "single blocks are used by")
        taken = Symbol(len(indices), axis.reason)
        return Axes(
            taken if number == dim else varying(taken, tuple(at(other, axis, j) for j in indices))
            for number, other in enumerate(x)
        )
    if list(indices) == list(range(indices[0], indices[0] + len(indices))):
        found = cut(
            axis, indices[0], indices[0] + len(indices), f"a slice that cannot be followed: {call.where}"
        )
    else:
        call.pin([axis])
        found = call.fixed(len(indices))
    return Axes(found if number == dim else resolve(other) for number, other in enumerate(x))


def picked(call: Call, x: Axes, dim: int, index: int) -> Axes:
    """One position along an axis, which goes."""
    call.pin([x[dim]], "single positions are used by")
    node = resolve(x[dim])
    factors = node.factors if isinstance(node, Times) else (node,)
    coordinates = np.unravel_index(index % size(node), [size(factor) for factor in factors])
    others = [axis for number, axis in enumerate(x) if number != dim]
    for factor, place in zip(factors, coordinates, strict=True):
        if isinstance(factor, Symbol):
            others = [at(axis, factor, int(place)) for axis in others]
    return Axes(others)


@rule("select")
def select(call: Call) -> Result:
    """One position along an axis."""
    x: Axes = call["self"]
    return picked(call, x, call["dim"] % len(x), call["index"])


@rule("unbind")
def unbind(call: Call) -> Result:
    """Every position along an axis by itself."""
    x: Axes = call["self"]
    dim = (call["dim"] or 0) % len(x)
    return [picked(call, x, dim, index) for index in range(size(x[dim]))]


@rule("slice", "narrow")
def sliced(call: Call) -> Result:
    """A range of positions along an axis."""
    x: Axes = call["self"]
    dim = (call["dim"] or 0) % len(x)
    if call.name == "narrow":
        start = call["start"] % size(x[dim])
        indices = range(start, start + call["length"])
    else:
        indices = range(*slice(call["start"], call["end"], call["step"]).indices(size(x[dim])))
    if not indices:
        raise CannotFollowError("no positions")
    return chosen(call, x, dim, indices)


@rule("chunk", "split", "split_with_sizes", "tensor_split")
def parted(call: Call) -> Result:
    """Ranges of positions along an axis, one after the other."""
    x: Axes = call["self"]
    dim = (call["dim"] or 0) % len(x)
    ends = np.cumsum([shape[dim] for shape in call.shapes])
    results = []
    for end, shape in zip(ends, call.shapes, strict=True):
        results.append(chosen(call, x, dim, range(int(end) - shape[dim], int(end))))
    return [Axes(map(resolve, axes)) for axes in results]


@rule("roll", "flip")
def moved(call: Call) -> Result:
    """Positions go to other places along some axes, which stay."""
    x: Axes = call["self"]
    dims = call.dims("dims", len(x))
    call.pin(x[number] for number in dims)
    mix(x, dims)
    return x


@rule("index")
def index(call: Call) -> Result:
    """Positions looked up by integers: indexed axes stay; the result has the axes of the indices in their
    place."""
    x, indices = call["self"], call["indices"]
    indexed = [number for number, found in enumerate(indices) if found is not None]
    call.pin((x[number] for number in indexed), "looked up by place in")
    mix(x, indexed)
    rank = max(len(indices[number]) for number in indexed)
    for number in indexed:
        call.pin(indices[number], "places looked up in")
    first = indexed[0] if indexed == list(range(indexed[0], indexed[-1] + 1)) else 0
    kept = [axis for number, axis in enumerate(x) if number not in indexed]
    return Axes((*kept[:first], *map(call.fixed, call.shape[first : first + rank]), *kept[first:]))


@rule("index_select")
def index_select(call: Call) -> Result:
    """Positions looked up along one axis."""
    x: Axes = call["self"]
    dim = call["dim"] % len(x)
    call.pin([x[dim], *call["index"]], "looked up by place in")
    mix(x, [dim])
    return Axes(call.fixed(call.shape[dim]) if number == dim else axis for number, axis in enumerate(x))


@rule("embedding")
def embedding(call: Call) -> Result:
    """Rows looked up by integers."""
    weight, indices = call["weight"], call["indices"]
    call.pin([weight[0]], "looked up by place in")
    return Axes((*indices, weight[1]))
