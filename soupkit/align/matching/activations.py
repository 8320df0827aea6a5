"""What units do on data, as tensors that can be matched like weights.

A tap is the channels of one module's input or output. Its standardised values, [C, R] over R sampled
positions of unlabelled images, join the weights under a name of their own; then ⟨X_i, Y_j⟩ is the correlation
of unit i of one model with unit j of another. Shape suffixes: C channels, R rows (positions of images).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from soupkit.align.graph.expression import Atom, AxisExpr, names_in
from soupkit.align.moments import Forward
from soupkit.align.sites import CONVOLUTIONS, hooked
from soupkit.align.spec import PermutationSpec
from soupkit.task.task import Batch

NUM_ROWS = 4096
"""Positions of which activations are kept: correlations are known to about 1/64."""
PREFIX = "activations of "


@dataclass(frozen=True)
class Tap:
    """Where activations are taken: a module, which side of it, the expression of its channels and where they
    lie."""

    module: str
    side: str
    channels: AxisExpr
    axis: int

    @property
    def name(self) -> str:
        """What the values are called beside the weights."""
        return f"{PREFIX}{self.module} ({self.side})"


def find_taps(model: nn.Module, spec: PermutationSpec) -> list[Tap]:
    """The inputs and outputs of layers and norms whose channels can be permuted, as their weights' axes say.

    The residual stream is seen by every norm and layer that reads it: all of them vote.
    """
    found = []
    for name, module in model.named_modules():
        axes = spec.axes.get(f"{name}.weight")
        if axes and isinstance(
            module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | _BatchNorm | nn.LayerNorm
        ):
            sides = [("output", axes[0])]
            if isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and module.groups == 1):
                sides.append(("input", axes[1]))
            found += [Tap(name, side, axis, _axis(module)) for side, axis in sides if names_in(axis)]
    return found


def _axis(module: nn.Module) -> int:
    """Where a module has its channels. timm's LayerNorm2d and its kin take [B, C, H, W]."""
    is_last = isinstance(module, nn.Linear) or (
        isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__
    )
    return -1 if is_last else 1


def with_taps(spec: PermutationSpec, taps: Iterable[Tap]) -> PermutationSpec:
    """The spec of weights and activations: a tap's channels are permuted as the weights' axis is, its rows
    stay."""
    added = {tap.name: (tap.channels, Atom(None, NUM_ROWS)) for tap in taps}
    return replace(spec, axes={**spec.axes, **added})


@torch.no_grad()
def activations(
    model: nn.Module, taps: Iterable[Tap], batches: Iterable[Batch], forward: Forward
) -> dict[str, Tensor]:
    """Every tap's values, standardised per channel and divided by √R: float32[C, R].

    forward passes a batch through the model. The same positions of the same examples whatever the weights, so
    that models can be compared. Channels that never
    change are zero. Memory: C × R floats per tap. Cost: one forward pass over the batches.
    """
    by_module: dict[str, list[Tap]] = {}
    for tap in taps:
        by_module.setdefault(tap.module, []).append(tap)
    rows: dict[str, list[Tensor]] = {tap.name: [] for same in by_module.values() for tap in same}
    chosen = list(batches)
    share = -(-NUM_ROWS // len(chosen))

    def visit(name: str, _module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        for tap in by_module[name]:
            values_rc = (inputs if tap.side == "input" else output).movedim(tap.axis, -1).flatten(0, -2)
            places = torch.randint(
                len(values_rc), (share,), generator=torch.Generator().manual_seed(len(rows[tap.name]))
            )
            rows[tap.name].append(values_rc[places.to(values_rc.device)].float())

    with hooked({name: model.get_submodule(name) for name in by_module}, visit):
        for batch in chosen:
            forward(batch)
    return {name: _standardised(torch.cat(parts)[:NUM_ROWS]) for name, parts in rows.items() if parts}


def _standardised(values_rc: Tensor) -> Tensor:
    centred = values_rc - values_rc.mean(0)
    scale = centred.norm(dim=0)
    standard: Tensor = centred / scale.clamp_min(1e-12) * (scale > 1e-12)
    return standard.T.contiguous()


def weighed_equally(weights: Mapping[str, Tensor], taps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights and activations together, the latter scaled to the same total norm."""
    squares = [sum(float(each.double().square().sum()) for each in part.values()) for part in (weights, taps)]
    factor = math.sqrt(squares[0] / max(squares[1], 1e-300)) if weights else 1.0
    return {**weights, **{name: tensor * factor for name, tensor in taps.items()}}
