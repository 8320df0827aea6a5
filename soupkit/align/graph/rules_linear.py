"""Rules of operations that multiply: linear maps, convolutions, products of matrices, attention."""

from __future__ import annotations

from soupkit.align.graph.axes import Node, Symbol, plus, resolve, size, times, varying
from soupkit.align.graph.rules import Axes, Call, CannotFollowError, Result, broadcast, mix, rule, tie
from soupkit.align.graph.unify import split


@rule("linear")
def linear(call: Call) -> Result:
    """y = x Wᵀ + b."""
    x, weight, bias = call["input"], call["weight"], call["bias"]
    call.unify(x[-1], weight[1])
    if bias is not None:
        call.unify(bias[0], weight[0])
    mix(x, [len(x) - 1])
    return Axes((*x[:-1], resolve(weight[0])))


@rule("matmul", "mm", "bmm")
def matmul(call: Call) -> Result:
    """Products of matrices, batched over leading axes."""
    x, y = call["self"], call["other"] if call["other"] is not None else call["mat2"]
    return product(call, x, y)


@rule("addmm", "baddbmm")
def addmm(call: Call) -> Result:
    """A product of matrices with something added."""
    batched = call.name == "baddbmm"
    x, y = (call["batch1"], call["batch2"]) if batched else (call["mat1"], call["mat2"])
    return broadcast(call, [product(call, x, y), call["self"]], call.shape)


def product(call: Call, x: Axes, y: Axes) -> Axes:
    """x @ y: batch axes are tied first, since the inner ones may vary over them."""
    inner = -1 if len(y) == 1 else -2
    batch: Axes = Axes()
    if len(x) > 2 or len(y) > 2:
        num_outer = (len(x) > 1) + (len(y) > 1)
        batch = broadcast(call, [Axes(x[:-2]), Axes(y[:-2])], call.shape[: len(call.shape) - num_outer])
    call.unify(x[-1], y[inner])
    mix(x, [len(x) - 1])
    mix(y, [len(y) + inner])
    rows = (x[-2],) if len(x) > 1 else ()
    columns = (y[-1],) if len(y) > 1 else ()
    return Axes((*batch, *rows, *columns))


@rule("einsum")
def einsum(call: Call) -> Result:
    """Axes with the same letter are tied; letters that the result lacks are summed over."""
    equation, tensors = call["equation"].replace(" ", ""), call["tensors"]
    if "." in equation or "->" not in equation:
        raise CannotFollowError(f"einsum {equation}")
    terms, result = equation.split("->")
    letters: dict[str, list[Node]] = {}
    for term, axes in zip(terms.split(","), tensors, strict=True):
        if len(set(term)) != len(term):
            raise CannotFollowError(f"einsum {equation}")
        for letter, axis in zip(term, axes, strict=True):
            letters.setdefault(letter, []).append(axis)
    order = sorted(letters, key=lambda letter: letter not in result)
    tied = {
        letter: tie(call, [axis for axis in letters[letter] if size(axis) > 1] or letters[letter])
        for letter in order
    }
    for term, axes in zip(terms.split(","), tensors, strict=True):
        mix(axes, [number for number, letter in enumerate(term) if letter not in result])
    return Axes(resolve(tied[letter]) for letter in result)


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution")
def convolution(call: Call) -> Result:
    """Channels are mixed inside each group; the positions under a kernel are neighbours."""
    x, weight = call["input"], call["weight"]
    if len(x) != len(weight) or call["transposed"]:
        raise CannotFollowError("a convolution of another kind")
    groups = call["groups"] or 1
    _neighbours(call, x, weight)
    if groups == 1:
        call.unify(x[1], weight[1])
    else:
        _grouped(call, x[1], weight, groups)
    return _with_bias(call, x[0], weight[0])


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(call: Call) -> Result:
    """As a convolution, with the two channel axes of the weight exchanged."""
    x, weight = call["input"], call["weight"]
    groups = call["groups"] or 1
    if len(x) != len(weight):
        raise CannotFollowError("a convolution without a batch")
    _neighbours(call, x, weight)
    call.unify(x[1], weight[0])
    if groups == 1:
        return _with_bias(call, x[0], weight[1])
    outer, _ = split(x[1], groups, f"the groups of {call.where}")
    return _with_bias(call, x[0], times(outer, weight[1]))


def _neighbours(call: Call, x: Axes, weight: Axes) -> None:
    call.pin((*x[2:], *weight[2:]), "neighbours in")
    mix(x, range(1, len(x)))


def _grouped(call: Call, channels: Node, weight: Axes, groups: int) -> None:
    """Groups move whole. The weight has one axis for the channels inside all groups, so they share their
    order."""
    reason = f"the groups of {call.where}"
    outer, inner = split(channels, groups, reason)
    call.unify(inner, weight[1])
    result, _ = split(weight[0], groups, reason)
    call.unify(outer, result)


def _with_bias(call: Call, batch: Node, channels: Node) -> Axes:
    if call["bias"] is not None:
        call.unify(call["bias"][0], channels)
    return Axes((batch, resolve(channels), *map(call.fixed, call.shape[2:])))


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Result:
    """softmax(QKᵀ/√d + mask)V over the leading axes; the units of Q and K are the same, those of V are
    apart."""
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    if call["enable_gqa"]:
        key, value = (_repeated(axes, query) for axes in (key, value))
    if call["is_causal"]:
        call.pin((query[-2], key[-2]), "in order for")
    batch = broadcast(call, [Axes(query[:-2]), Axes(key[:-2]), Axes(value[:-2])], call.shape[:-2])
    call.unify(key[-2], value[-2])
    call.unify(query[-1], key[-1])
    for axes, dims in ((query, [-1]), (key, [-1, -2]), (value, [-2])):
        mix(axes, [number % len(axes) for number in dims])
    if mask is not None:
        _masked(call, mask, Axes((*batch, query[-2], key[-2])))
    return Axes((*map(resolve, batch), resolve(query[-2]), resolve(value[-1])))


def _masked(call: Call, mask: Axes, scores: Axes) -> None:
    shape = tuple(map(size, scores))
    broadcast(call, [scores, mask], shape)


def _repeated(axes: Axes, query: Axes) -> Axes:
    """Grouped-query attention: every head of keys and values serves several neighbouring heads of queries."""
    heads = axes[-3]
    copies = size(query[-3]) // size(heads)
    repeated = times(heads, Symbol(copies, loose=True))
    return Axes((*axes[:-3], repeated, *axes[-2:]))


@rule("lstm")
def lstm(call: Call) -> Result:
    """Layers and directions of long short-term memory; the four gates of each have the same units."""
    x, states, params = call["input"], call["hx"], call["params"]
    per, directions = (4 if call["has_biases"] else 2), (2 if call["bidirectional"] else 1)
    layers = [params[number : number + per] for number in range(0, len(params), per)]
    if not states or any(len(own[1]) != 2 or size(own[1][1]) * 4 != size(own[1][0]) for own in layers):
        raise CannotFollowError("an LSTM with projections or packed sequences")
    units = [_cell(call, own) for own in layers]
    below = x[-1]
    for number in range(0, len(layers), directions):
        for own in layers[number : number + directions]:
            call.unify(below, own[0][1])
        below = plus(*units[number : number + directions])
    kinds = call.fixed(len(units))
    last = varying(kinds, tuple(units)) if len(units) > 1 else units[0]
    for state in states:
        call.pin(state[:1])
        tie(call, [last, state[-1]])
    call.pin(x[:-1], "in order for")
    middle = x[1] if call["batch_first"] is not True else x[0]
    return [Axes((*x[:-1], resolve(below))), *(Axes((kinds, middle, resolve(last))) for _ in range(2))]


def _cell(call: Call, params: list[Axes]) -> Node:
    """The units of one layer in one direction."""
    units = params[1][1]
    for own in params:
        gates, inside = split(own[0], 4)
        call.pin([gates], "the gates of")
        call.unify(units, inside)
    return units
