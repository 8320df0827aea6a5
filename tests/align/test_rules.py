"""Single operations: what is unknown is pinned, what is constant ties nothing, and every rule keeps the
function."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from align.networks import Lambda, change, prepared
from torch import nn

from soupkit.align.graph.axes import Symbol, Varying, resolve
from soupkit.align.graph.rules import Axes, close, mix
from soupkit.align.graph.trace import permutation_spec
from soupkit.align.graph.unify import split
from soupkit.align.permutation import random_permutation
from soupkit.align.spec import PermutationSpec
from soupkit.errors import AlignError

VECTORS = (torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)
WIDE = 12


def derive(model: nn.Module, inputs: tuple[torch.Tensor, ...] = VECTORS) -> PermutationSpec:
    """The groups of a model, checked by brute force."""
    model = prepared(model)
    spec = permutation_spec(model, inputs)
    for seed in range(3):
        assert change(model, spec, random_permutation(spec, seed), inputs) < 1e-10
    return spec


def between(
    function: Callable[[torch.Tensor], torch.Tensor], *, width: int = WIDE, back: int = WIDE
) -> nn.Module:
    """A linear map, a function of its output, a linear map."""
    torch.manual_seed(0)
    return Lambda(lambda x, a, b: b(function(a(x))), nn.Linear(6, width), nn.Linear(back, 4))


def sizes(spec: PermutationSpec) -> list[int]:
    return sorted(group.size for group in spec.groups.values())


def head_axes() -> tuple[Axes, Symbol]:
    heads, units = split(Symbol(12), 3)
    assert isinstance(heads, Symbol)
    assert isinstance(resolve(units), Varying)
    return Axes((Symbol(2, "batch"), heads, Symbol(5, "tokens"), units)), heads


def test_an_axis_cannot_vary_over_what_is_gone() -> None:
    axes, _ = head_axes()
    close(axes)
    assert isinstance(resolve(axes[3]), Varying)
    close(Axes(axes[2:]))
    assert isinstance(resolve(axes[3]), Symbol)


def test_an_axis_cannot_vary_over_what_is_there_twice() -> None:
    axes, heads = head_axes()
    close(Axes((*axes, heads)))
    assert isinstance(resolve(axes[3]), Symbol)


def test_mixing_blocks_shares_what_varies_over_them_and_nothing_else_does() -> None:
    axes, _ = head_axes()
    mix(axes, [0, 2, 3])
    assert isinstance(resolve(axes[3]), Varying)
    mix(axes, [1])
    assert isinstance(resolve(axes[3]), Symbol)


def test_an_operation_without_a_rule_pins_its_operands() -> None:
    spec = derive(between(lambda x: torch.renorm(x, 2, 0, 1.0) + x))
    assert sizes(spec) == []
    assert any("no rule for renorm" in note for note in spec.notes["gave_up"])
    reasons = {entry.reason for entry in spec.pinned if entry.tensor == "inner.0.weight" and entry.axis == 0}
    assert any("renorm" in reason for reason in reasons)


FREE = {
    "softplus": (lambda x: F.softplus(x), [12]),
    "max of two": (lambda x: torch.maximum(x, x.neg()), [12]),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), [12]),
    "log-sum-exp beside": (lambda x: x - x.logsumexp(-1, keepdim=True), [12]),
    "normalised": (lambda x: F.normalize(x, dim=-1), [12]),
    "standardised": (lambda x: (x - x.mean(-1, keepdim=True)) / torch.std_mean(x, -1, keepdim=True)[0], [12]),
    "max over tokens": (lambda x: x.max(1).values, [12]),
    "sorted tokens": (lambda x: x.sort(1).values, [12]),
    "arg-max of the units": (lambda x: x * x.argmax(-1, keepdim=True), []),
    "top units": (lambda x: x.topk(12, -1).values, []),
    "cumulated tokens": (lambda x: x.cumsum(1), [12]),
    "flipped tokens": (lambda x: x.flip(1), [12]),
    "flipped units": (lambda x: x.flip(-1), []),
    "every other unit": (lambda x: torch.cat([x[..., ::2], x[..., 1::2]], -1), []),
    "halves exchanged": (lambda x: torch.cat([x[..., 6:], x[..., :6]], -1), [6, 6]),
    "narrowed": (lambda x: torch.cat([x.narrow(-1, 4, 8), x.narrow(-1, 0, 4)], -1), [4, 8]),
    "outer product": (lambda x: (x.unsqueeze(-1) * x.unsqueeze(-2)).mean(-1), [12]),
    "products of all pairs": (lambda x: torch.einsum("bnd,bne->bde", x, x).mean(1), [12]),
    "mask of a triangle": (lambda x: (x @ x.mT).tril() @ x, [12]),
    "batched with something added": (lambda x: torch.baddbmm(x, x @ x.mT, x), [12]),
    "causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), [12]),
    "masked": (
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(5, 5).tril().bool()),
        [12],
    ),
    "looked up": (lambda x: x[:, torch.tensor([4, 0, 0, 1])], [12]),
    "units looked up": (lambda x: x[..., torch.arange(11, -1, -1)], []),
    "selected tokens": (lambda x: x.index_select(1, torch.tensor([1, 1, 2])), [12]),
    "one token": (lambda x: x[:, 0], [12]),
    "folded": (
        lambda x: F.fold(F.unfold(x.mT.unflatten(-1, (5, 1)), (3, 1)), (5, 1), (3, 1)).flatten(2).mT,
        [12],
    ),
    "windows": (lambda x: x.unfold(1, 2, 1).mean(-1), [12]),
    "reflected": (lambda x: F.pad(x.mT, (1, 2), "reflect").mT, [12]),
    "padded and cut again": (lambda x: F.pad(x, (3, 1))[..., 3:-1], [12]),
    "converted": (lambda x: x.float().double().type_as(x), [12]),
    "in another's precision": (lambda x: x.relu().type_as(x.flip(-1)), []),
    "added to what is constant": (lambda x: x + torch.full((12,), 2.0, dtype=x.dtype), [12]),
    "added to what is not": (lambda x: x + torch.arange(12), []),
    "pooled": (lambda x: F.avg_pool1d(x.mT, 2).mT, [12]),
    "resized": (lambda x: F.interpolate(x.mT, size=7, mode="linear").mT, [12]),
    "pooled units": (lambda x: F.max_pool1d(x, 3, 1, 1), []),
    "rearranged": (lambda x: x.unflatten(-1, (2, 6)).transpose(-1, -2).flatten(-2), [2, 6]),
    "rearranged further": (
        lambda x: x.unflatten(-1, (2, 3, 2)).permute(0, 1, 4, 2, 3).flatten(2),
        [2, 2, 3, 3],
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_what_an_operation_leaves_free(name: str) -> None:
    function, expected = FREE[name]
    spec = derive(between(function))
    assert not spec.notes["gave_up"]
    assert sizes(spec) == expected


def test_dtypes_that_follow_another_tensor_tie_nothing() -> None:
    torch.manual_seed(0)
    model = Lambda(
        lambda x, a, b, c: c(a(x).type_as(b(x)) * 2) + b(x).mean(), *(nn.Linear(6, 6) for _ in range(3))
    )
    spec = derive(model)
    assert spec.attached("inner.0.weight:0") == [
        ("inner.0.weight", 0),
        ("inner.0.bias", 0),
        ("inner.2.weight", 1),
    ]


def test_a_constant_buffer_ties_nothing_and_another_does() -> None:
    class Shifted(nn.Module):
        def __init__(self, shift: torch.Tensor) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, WIDE), nn.Linear(WIDE, 4)
            self.register_buffer("shift", shift, persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu() + self.shift)

    assert sizes(derive(Shifted(torch.ones(WIDE)))) == [WIDE]
    assert sizes(derive(Shifted(torch.linspace(0, 1, WIDE)))) == []


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_long_short_term_memory(bidirectional: bool, layers: int) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(6, 7, layers, batch_first=True, bidirectional=bidirectional)
    model = Lambda(lambda x, lstm, b: b(lstm(x)[0]), lstm, nn.Linear(7 + 7 * bidirectional, 3))
    assert sizes(derive(model)) == [7] * layers * (1 + bidirectional)


def test_regions_of_other_precision_are_followed_inside() -> None:
    def inside(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return x.relu() * 2

    spec = derive(between(inside))
    assert sizes(spec) == [WIDE]


def test_tensors_without_a_part_in_the_output_stay() -> None:
    model = between(torch.relu)
    model.register_parameter("unused", nn.Parameter(torch.randn(9)))
    spec = derive(model)
    assert ("unused", 0, "no part of what the network computes") in [
        (p.tensor, p.axis, p.reason) for p in spec.pinned
    ]


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(AlignError, match="training mode"):
        permutation_spec(nn.Linear(6, 3), VECTORS)


def test_a_model_that_cannot_be_exported_is_refused_with_its_own_words() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("nothing to see here")

    with pytest.raises(AlignError, match="nothing to see here"):
        permutation_spec(Branching().eval(), VECTORS)


def test_shapes_that_depend_on_data_are_refused() -> None:
    model = Lambda(lambda x, a: a(x)[x.sum(-1) > 0].sum(0), nn.Linear(6, 3)).double().eval()
    with pytest.raises(AlignError):
        permutation_spec(model, VECTORS)
