"""Rules of operations that treat every position alike: elementwise, creation, normalization, reductions,
pooling."""

from __future__ import annotations

import re

from soupkit.align.graph.axes import Symbol, size
from soupkit.align.graph.rules import Axes, Call, CannotFollowError, Result, broadcast, mix, rule
from soupkit.align.graph.unify import cut, split

ELEMENTWISE = """
abs add addcdiv addcmul alias alpha_dropout atan atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil
celu clamp
clamp_max clamp_min clone contiguous copy cos cosh detach div dropout elu eq erf exp expm1
feature_alpha_dropout
feature_dropout fill floor floor_divide fmod ge gelu gt hardshrink hardsigmoid hardswish hardtanh isfinite
isinf isnan
le leaky_relu lerp lift_fresh_copy log log10 log1p log2 log_sigmoid logical_and logical_not logical_or
logical_xor lt
masked_fill maximum minimum mish mul nan_to_num ne neg pow reciprocal relu relu6 remainder round rsqrt rsub
selu
sigmoid sign silu sin sinh softplus softshrink softsign sqrt square sub tan tanh threshold where zero
"""
CREATION = (
    "empty empty_like full full_like new_empty new_full new_ones new_zeros ones ones_like zeros zeros_like"
)
REDUCTIONS = "all amax amin any linalg_vector_norm logsumexp mean norm prod std sum var"
RANKED = "argmax argmin argsort cumprod cumsum sort topk"
POOLS = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d
avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices upsample_bicubic2d
upsample_bilinear2d
upsample_linear1d upsample_nearest1d upsample_nearest2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
"""


@rule(*ELEMENTWISE.split())
def elementwise(call: Call) -> Result:
    """Axes of all operands are the same, where they are not broadcast."""
    operands = call.tensors()
    result = broadcast(call, operands, call.shape)
    if call.in_place:
        for written, axis in zip(operands[0], result, strict=True):
            call.unify(written, axis)
    return result


@rule(*CREATION.split())
def created(call: Call) -> Result:
    """The same value everywhere: any order is right."""
    return Axes(Symbol(length, loose=True) for length in call.shape)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(call: Call) -> Result:
    """Positions along `dim` are mixed, in a way that does not depend on their order."""
    x: Axes = call["self"]
    mix(x, call.dims("dim", len(x)))
    return x


@rule("glu")
def glu(call: Call) -> Result:
    """The first half times the sigmoid of the second, position by position."""
    x: Axes = call["self"]
    (dim,) = call.dims("dim", len(x))
    half = size(x[dim]) // 2
    first, second = cut(x[dim], 0, half), cut(x[dim], half, 2 * half)
    call.unify(first, second)
    return Axes((*x[:dim], first, *x[dim + 1 :]))


@rule("to", "_to_copy", "type_as")
def converted(call: Call) -> Result:
    """Only the dtype changes; another tensor may say to which."""
    return Axes(call["self"])


@rule("prelu")
def prelu(call: Call) -> Result:
    """One slope per channel, or one for all."""
    x, weight = call["self"], call["weight"]
    if size(weight[0]) != 1:
        call.unify(x[1], weight[0])
    return Axes(x)


@rule("batch_norm", "instance_norm", "_batch_norm_with_update")
def batch_norm(call: Call) -> Result:
    """Every channel by itself: its statistics, gain and shift are in the order of the channels."""
    x: Axes = call["input"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call[name] is not None:
            call.unify(x[1], call[name][0])
    mix(x, [number for number in range(len(x)) if number != 1])
    return x


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> Result:
    """Positions of the last axes are mixed, in a way that does not depend on their order."""
    x: Axes = call["input"]
    first = len(x) - len(call["normalized_shape"])
    for name in ("weight", "bias"):
        for axis, own in zip(x[first:], call[name] or (), strict=False):
            call.unify(axis, own)
    mix(x, range(first, len(x)))
    return x


@rule("group_norm")
def group_norm(call: Call) -> Result:
    """Groups move whole, and the channels of a group among themselves."""
    x: Axes = call["input"]
    split(x[1], call["num_groups"], f"the groups of {call.where}")
    for name in ("weight", "bias"):
        if call[name] is not None:
            call.unify(x[1], call[name][0])
    mix(x, range(len(x)))
    return x


@rule(*REDUCTIONS.split())
def reduction(call: Call) -> Result:
    """Some axes go, or shrink to one position; the order along them does not matter."""
    x: Axes = call["self"]
    dims = call.dims("dim", len(x))
    mix(x, dims)
    if isinstance(call.shapes, list):
        raise CannotFollowError("several results")
    if len(call.shape) == len(x):
        return Axes(Symbol(1) if number in dims else axis for number, axis in enumerate(x))
    return Axes(axis for number, axis in enumerate(x) if number not in dims)


@rule("var_mean", "std_mean")
def moments(call: Call) -> Result:
    """Two reductions at once."""
    return [reduction(Call(call.name, call.arguments, shape, call.where)) for shape in call.shapes]


@rule("max", "min")
def extreme(call: Call) -> Result:
    """Of two tensors, of all positions, or along one axis together with the places, which then matter."""
    if call["other"] is not None:
        return elementwise(call)
    return ranked(call) if isinstance(call.shapes, list) else reduction(call)


@rule(*RANKED.split())
def ranked(call: Call) -> Result:
    """The places along `dim` are part of the result, so they stay; without `dim` all of them do."""
    x: Axes = call["self"]
    dims = call.dims("dim", len(x))
    call.pin(x[number] for number in dims)
    mix(x, dims)
    several = call.shapes if isinstance(call.shapes, list) else [call.shapes]
    results = [_without(call, x, dims, shape) for shape in several]
    return results if isinstance(call.shapes, list) else results[0]


def _without(call: Call, x: Axes, dims: list[int], shape: tuple[int, ...]) -> Axes:
    if len(shape) == len(x):
        return Axes(call.fixed(shape[number]) if number in dims else axis for number, axis in enumerate(x))
    return Axes(axis for number, axis in enumerate(x) if number not in dims)


@rule(*POOLS.split())
def pool(call: Call) -> Result:
    """Positions of the last axes are neighbours of each other; channels are apart."""
    x: Axes = call["self"] or call["input"]
    found = re.search(r"([123])d", call.name)
    assert found is not None
    num = int(found[1])
    call.pin(x[-num:], "neighbours in")
    mix(x, range(len(x) - num, len(x)))
    several = call.shapes if isinstance(call.shapes, list) else [call.shapes]
    results = [Axes((*x[:-num], *map(call.fixed, shape[-num:]))) for shape in several]
    return results if isinstance(call.shapes, list) else results[0]


@rule("arange", "linspace", "scalar_tensor", "eye")
def counted(call: Call) -> Result:
    """Values that tell the position."""
    return Axes(map(call.fixed, call.shape))


@rule("meshgrid")
def grid(call: Call) -> Result:
    """Coordinates of a grid."""
    for axes in call["tensors"]:
        call.pin(axes)
    return [Axes(map(call.fixed, shape)) for shape in call.shapes]


@rule("tril", "triu")
def triangle(call: Call) -> Result:
    """The last two axes are compared with each other."""
    x: Axes = call["self"]
    call.pin(x[-2:])
    mix(x, [len(x) - 2, len(x) - 1])
    return x


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "_functional_assert_async")
def asserted(_call: Call) -> Result:
    """Checks say nothing of order."""
    return None
