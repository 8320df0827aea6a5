"""The proof finds what is wrong: groups as other tools derive them, hidden errors, checks that check
nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from align.networks import Attention, C, Network, Residual, change
from torch import nn
from torch.nn import functional as F

from soupkit.align.graph.trace import permutation_spec
from soupkit.align.graph.trial import calibrate, permuted_state, randomise
from soupkit.align.graph.verify import moving_permutation, verify
from soupkit.align.permutation import random_permutation
from soupkit.align.spec import Atom, Group, PermutationSpec
from soupkit.errors import AlignError

IMAGES = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


def conv_network() -> nn.Module:
    torch.manual_seed(0)
    pieces = [nn.Conv2d(C, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, C, 1), nn.BatchNorm2d(C)]
    return Network(pieces, [nn.Identity()]).eval()


def attention_network() -> nn.Module:
    torch.manual_seed(0)
    return Network([nn.Identity()], [Residual(Attention("3hd"))]).eval()


def without(spec: PermutationSpec, tensor: str) -> PermutationSpec:
    """The spec as a tool would have it that forgets a tensor."""
    return replace(spec, axes={name: axes for name, axes in spec.axes.items() if name != tensor})


def test_groups_that_are_right_pass_in_float64() -> None:
    model = conv_network()
    checked = verify(model, spec := permutation_spec(model, IMAGES), IMAGES, num_controls=20)
    assert checked.spec == spec
    assert checked.dtype == "float64"
    assert checked.tolerance == 1e-10
    assert all(error < 1e-13 for error in checked.errors.values())
    assert len(checked.controls) == len(spec.families()) == 3
    assert min(checked.controls.values()) > 1e-4
    assert not checked.unobservable
    assert not checked.culprits


@pytest.mark.parametrize(
    "tensor", ["images.1.running_mean", "images.1.running_var", "images.1.bias", "images.0.bias"]
)
def test_a_forgotten_tensor_is_found_and_its_group_pinned(tensor: str) -> None:
    """Fresh batch-norm statistics are constant, so that only the randomised weights show it."""
    model = conv_network()
    spec = without(permutation_spec(model, IMAGES), tensor)
    checked = verify(model, spec, IMAGES)
    assert checked.culprits == ("images.0.weight:0",)
    assert "images.0.weight:0" not in checked.spec.groups
    assert len(checked.spec.groups) == len(spec.groups) - 1
    assert any(pin.reason == "the function check failed" for pin in checked.spec.pinned)
    assert max(checked.errors.values()) < 1e-13
    randomise(model.double(), 5)
    double = tuple(image.double() for image in IMAGES)
    assert change(model, checked.spec, random_permutation(checked.spec, 9), double) < 1e-12
    assert change(model, spec, random_permutation(spec, 9), double) > 1e-3


def test_queries_and_keys_that_are_permuted_apart_are_found() -> None:
    model = attention_network()
    spec = permutation_spec(model, IMAGES)
    axes = dict(spec.axes)
    groups = dict(spec.groups)
    for name in ("tokens.0.inner.qkv.weight", "tokens.0.inner.qkv.bias"):
        query, key, value = axes[name][0].parts
        parts = tuple(Atom(f"apart[{place}]", atom.size) for place, atom in enumerate(key.parts))
        axes[name] = (
            replace(axes[name][0], parts=(query, replace(key, parts=parts), value)),
            *axes[name][1:],
        )
        groups |= {
            part.group: Group(part.group, part.size, "units", "apart", (key.group, k))
            for k, part in enumerate(parts)
        }
    checked = verify(model, replace(spec, axes=axes, groups=groups), IMAGES)
    assert "apart" in checked.culprits
    assert "tokens.0.inner.qkv.weight:0.part2.units" not in checked.culprits
    assert max(checked.errors.values()) < 1e-13


def test_a_gain_of_zero_hides_nothing() -> None:
    model = conv_network()
    nn.init.zeros_(model.get_parameter("images.4.weight"))  # what comes before has no part in the output now
    spec = without(permutation_spec(model, IMAGES), "images.1.weight")
    nn.init.normal_(model.get_parameter("images.1.weight"))
    wrong = moving_permutation(spec, 0)
    assert change(model, spec, wrong, IMAGES) < 1e-5
    assert verify(model, spec, IMAGES).culprits == ("images.0.weight:0",)


def test_what_softmax_does_not_see_is_reported_as_unobservable() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shift, self.last = nn.Linear(4, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.first(x).relu() + 0 * self.shift
            return self.last(hidden)

    torch.manual_seed(0)
    model, inputs = Shifted().eval(), (torch.randn(3, 4),)
    spec = permutation_spec(model, inputs)
    assert ("shift", 0) in spec.attached("shift:0")
    found = {name for seed in range(12) for name in verify(model, spec, inputs, seed=seed).unobservable}
    assert found == {"shift:0 without shift"}


def test_tied_tensors_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 4)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.a(x).relu()))

    torch.manual_seed(0)
    model, inputs = Tied().eval(), (torch.randn(3, 7),)
    spec = permutation_spec(model, inputs)
    assert spec.axes["a.weight"] == spec.axes["b.weight"]
    assert not spec.groups  # the input stays, and with it the first axis of one and the second of the other
    torch.manual_seed(0)
    loose = nn.Sequential(
        nn.Linear(7, 9), nn.ReLU(), shared := nn.Linear(9, 9), nn.ReLU(), shared, nn.Linear(9, 2)
    ).eval()
    spec = permutation_spec(loose, inputs)
    assert [group.size for group in spec.groups.values()] == [9]
    checked = verify(loose, spec, inputs)
    assert not checked.culprits
    moved = permuted_state(loose.state_dict(), spec, moving_permutation(spec, 1))
    assert torch.equal(moved["2.weight"], moved["4.weight"])


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    model = conv_network()
    nn.init.constant_(model.get_parameter("stem.weight"), float("inf"))
    with pytest.raises(AlignError, match="not finite"):
        verify(model, permutation_spec(model, IMAGES), IMAGES)


def test_a_model_that_computes_in_single_precision_is_allowed_its_rounding() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 300), nn.Linear(300, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.first(x).relu().float(), self.last.weight.float())

    torch.manual_seed(0)
    model, inputs = Narrow().eval(), (torch.randn(3, 8),)
    checked = verify(model, permutation_spec(model, inputs), inputs)
    assert (checked.dtype, checked.tolerance, checked.culprits) == ("float64", 1e-4, ())
    assert 1e-10 < max(checked.errors.values()) < 1e-5


def test_randomised_weights_have_no_special_values() -> None:
    model = conv_network()
    randomise(model, 0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert len(tensor.unique()) == tensor.numel(), name
    assert model.get_buffer("images.1.running_var").min() > 0


def test_every_permutation_of_the_check_moves_its_group() -> None:
    spec = permutation_spec(model := conv_network(), IMAGES)
    pairs = replace(spec, groups={"g": Group("g", 2)}, axes={"t": (Atom("g", 2),)})
    assert all(moving_permutation(pairs, seed)["g"].tolist() == [1, 0] for seed in range(9))
    assert not any(np.array_equal(p, np.arange(len(p))) for p in moving_permutation(spec, 0).values())
    assert not model.training


def test_masks_keep_their_infinities() -> None:
    model = conv_network()
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    before = model.get_buffer("mask").clone()
    randomise(model, 0)
    assert torch.equal(model.get_buffer("mask"), before)


def deep_network(num_layers: int = 20) -> nn.Module:
    """Convolutions without a shortcut: random statistics would let the last of them drown the first."""
    torch.manual_seed(0)
    layers = [(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU()) for _ in range(num_layers)]
    return nn.Sequential(
        *(module for layer in layers for module in layer), nn.Flatten(), nn.Linear(C * 64, 3)
    ).eval()


def test_statistics_are_set_so_that_every_layer_shows() -> None:
    model, images = deep_network(), (torch.randn(2, C, 8, 8),)
    checked = verify(model, permutation_spec(model, images), images, num_controls=100)
    assert min(checked.controls.values()) > 1e-3
    assert not checked.unobservable
    randomise(model, 0)
    calibrate(model, images, 0)
    seen: list[torch.Tensor] = []
    hook = model[-4].register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    model(*images)
    hook.remove()
    assert 0.3 < float(seen[0].std()) < 3
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_rounding_that_a_deep_network_amplifies_is_no_error() -> None:
    model, images = deep_network(100), (torch.randn(2, C, 8, 8),)
    spec = permutation_spec(model, images)
    checked = verify(model, spec, images)
    assert 1e-10 < checked.errors["randomised"] < checked.tolerance < 1e-4
    assert not checked.culprits
    wrong = verify(model, without(spec, "4.running_mean"), images)
    assert wrong.culprits == ("3.weight:0",)


class Remembering(nn.Module):
    """Attention biases as LeViT has them: gathered once in eval mode, and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.biases = nn.Linear(C, 3 * C), nn.Parameter(torch.randn(3, 5))
        self.proj = nn.Linear(C, C)
        self.kept: torch.Tensor | None = None

    def train(self, mode: bool = True) -> Remembering:
        super().train(mode)
        if mode:
            self.kept = None
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 3, C // 3).permute(2, 0, 3, 1, 4)
        if self.kept is None or self.training:
            places = torch.arange(x.shape[1])
            self.kept = self.biases[:, (places[:, None] - places).abs()]
        scores = q @ k.transpose(-2, -1) + self.kept
        found: torch.Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return found


def test_what_a_network_remembers_of_its_weights_is_forgotten_between_passes() -> None:
    torch.manual_seed(0)
    tokens = (torch.randn(2, 5, C),)
    spec = permutation_spec(Remembering().eval(), tokens)
    assert {"biases", "qkv.weight", "proj.weight"} <= {tensor for tensor, _ in spec.attached("biases:0")}
    checked = verify(Remembering().eval(), spec, tokens, num_controls=100)
    assert not checked.culprits
    assert not checked.unobservable
    assert verify(Remembering().eval(), without(spec, "biases"), tokens).culprits
