"""Rules of operations that only move positions: reshapes, permutations, copies, concatenation, padding."""

from __future__ import annotations

from collections.abc import Sequence

from soupkit.align.graph.axes import Node, Symbol, open_overs, places, plus, resolve, size, times, varying
from soupkit.align.graph.rules import Axes, Call, CannotFollowError, Result, Shape, mix, rule, tie
from soupkit.align.graph.unify import share, split


def reshape(call: Call, axes: Sequence[Node], shape: Shape) -> Axes:
    """The same positions, in row-major order, under other sizes."""
    if 0 in shape:
        raise CannotFollowError("no positions")
    waiting = [axis for axis in axes if size(axis) != 1]
    result: list[Node] = []
    rest: Node = Symbol(1)
    for length in shape:
        while size(rest) % length:
            if not waiting:
                raise CannotFollowError("positions are missing")
            rest = joined(rest, waiting.pop(0))
        found: Node = Symbol(1)
        if length > 1:
            found, rest = split(rest, length, f"a reshape that cannot be followed: {call.where}")
        result.append(found)
    if waiting or size(rest) != 1:
        raise CannotFollowError("positions are left over")
    return Axes(map(resolve, result))


def joined(outer: Node, inner: Node) -> Node:
    """Two neighbouring axes as one; what varies over a later factor cannot be written row-major and is
    shared."""
    node = times(outer, inner)
    for over in open_overs(node):
        if over in set(places(node)):
            share(node, over)
    return resolve(node)


@rule(
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "_unsafe_view",
    "squeeze",
    "unsqueeze",
    "reshape_as",
    "view_as",
    "ravel",
)
def reshaped(call: Call) -> Result:
    """Row-major order is kept."""
    return reshape(call, call["self"], call.shape)


@rule("permute")
def permute(call: Call) -> Result:
    """Axes in another order."""
    return Axes(call["self"][number] for number in call["dims"])


@rule("transpose", "swapaxes", "swapdims")
def transpose(call: Call) -> Result:
    """Two axes change places."""
    axes = list(call["self"])
    a, b = (call[x] if call[x] is not None else call[y] for x, y in (("dim0", "axis0"), ("dim1", "axis1")))
    axes[a], axes[b] = axes[b], axes[a]
    return Axes(axes)


@rule("t", "numpy_T", "mT")
def turned(call: Call) -> Result:
    """The last two axes change places."""
    axes = call["self"]
    if len(axes) > 2 and call.name == "numpy_T":
        return Axes(reversed(axes))
    return Axes((*axes[:-2], *reversed(axes[-2:])))


@rule("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Result:
    """New positions are copies of one: any order of them is right."""
    x, shape = call["self"], call.shape
    own = len(shape) - len(x)
    return Axes(
        x[number - own] if number >= own and size(x[number - own]) == length else Symbol(length, loose=True)
        for number, length in enumerate(shape)
    )


@rule("repeat", "tile")
def repeat(call: Call) -> Result:
    """Whole copies one after the other."""
    x, shape = call["self"], call.shape
    own = len(shape) - len(x)
    axes: list[Node] = []
    for number, length in enumerate(shape):
        axis = x[number - own] if number >= own else Symbol(1)
        copies = length // size(axis)
        axes.append(times(Symbol(copies, loose=True), axis))
    return Axes(axes)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> Result:
    """Every position several times in a row."""
    x, dim = call["self"], call["dim"]
    if not isinstance(call["repeats"], int) or dim is None:
        raise CannotFollowError("repeats that vary")
    axes = list(x)
    axes[dim] = times(axes[dim], Symbol(call["repeats"], loose=True))
    return Axes(axes)


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> Result:
    """One after the other along `dim`; alike along the others."""
    tensors = [axes for axes in call["tensors"] if len(axes) > 1 or len(call.shape) == 1]
    dim = (call["dim"] or 0) % len(call.shape)
    axes = [
        plus(*(x[dim] for x in tensors)) if number == dim else tie(call, [x[number] for x in tensors])
        for number in range(len(call.shape))
    ]
    return Axes(map(resolve, axes))


@rule("stack")
def stack(call: Call) -> Result:
    """A new axis whose positions stay; everything else may vary over it."""
    tensors = call["tensors"]
    dim = (call["dim"] or 0) % len(call.shape)
    places_ = call.fixed(len(tensors))
    axes = [varying(places_, members) for members in zip(*tensors, strict=True)]
    return Axes((*axes[:dim], places_, *axes[dim:]))


@rule("pad", "constant_pad_nd")
def pad(call: Call) -> Result:
    """Constant padding may come before and after; of other kinds, and where positions are cut off, the axis
    stays."""
    x, amounts = call["self"], call["pad"]
    constant = call.name == "constant_pad_nd" or call["mode"] in (None, "constant")
    axes: list[Node] = []
    for number, axis in enumerate(x):
        place = 2 * (len(x) - 1 - number)
        before, after = amounts[place : place + 2] if place < len(amounts) else (0, 0)
        if (constant and min(before, after) >= 0) or before == after == 0:
            pads = [Symbol(n, loose=True) if n else None for n in (before, after)]
            axes.append(plus(*(part for part in (pads[0], axis, pads[1]) if part is not None)))
        else:
            call.pin([axis])
            axes.append(call.fixed(call.shape[number]))
    return Axes(axes)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Result:
    """Channels become neighbouring pixels."""
    x: Axes = call["self"]
    channels, pixels = split(x[-3], call.shape[-3], call.where)
    call.pin([pixels, *x[-2:]], "neighbours in")
    return Axes((*x[:-3], channels, *map(call.fixed, call.shape[-2:])))


@rule("pixel_unshuffle", "im2col")
def patches(call: Call) -> Result:
    """Neighbouring pixels become channels, those of one channel together."""
    x: Axes = call["self"]
    channel = 1 if call.name == "im2col" else len(x) - 3
    spatial = range(channel + 1, len(x))
    call.pin((x[number] for number in spatial), "neighbours in")
    mix(x, spatial)
    copies = call.shape[channel] // size(x[channel])
    rest = map(call.fixed, call.shape[channel + 1 :])
    return Axes((*x[:channel], times(x[channel], call.fixed(copies)), *rest))


@rule("col2im")
def fold(call: Call) -> Result:
    """Patches are added up where they overlap; the positions inside a patch lie behind its channel."""
    x: Axes = call["self"]
    channels, pixels = split(x[1], call.shape[1], call.where)
    call.pin([pixels, x[2]], "neighbours in")
    mix(x, [2])
    return Axes((x[0], channels, *map(call.fixed, call.shape[2:])))


@rule("channel_shuffle")
def channel_shuffle(call: Call) -> Result:
    """Channels of `groups` groups, one of each in turn."""
    x: Axes = call["self"]
    groups, units = split(x[1], call["groups"], call.where)
    return Axes((x[0], joined(units, groups), *x[2:]))


@rule("unfold")
def unfold(call: Call) -> Result:
    """Windows along one axis, as a last axis."""
    x: Axes = call["self"]
    dim = call["dimension"] % len(x)
    call.pin([x[dim]], "neighbours in")
    mix(x, [dim])
    windows = (call.fixed(call.shape[dim]) if number == dim else axis for number, axis in enumerate(x))
    return Axes((*windows, call.fixed(call.shape[-1])))
