"""A model to try things on: in wide precision, with weights away from special values, and what it then
computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from soupkit.align.matching.similarity import all_permuted
from soupkit.align.spec import Permutation, PermutationSpec
from soupkit.errors import AlignError

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
State = Mapping[str, torch.Tensor]


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Move every floating parameter and persistent buffer away from special values, in place.

    Variances become 0.5 … 1.5; vectors get noise of 0.3; others of 0.3 of their own deviation (0.02 where
    that is 0).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if (
                not tensor.is_floating_point() or not tensor.numel() or not tensor.isfinite().all()
            ):  # a mask, then
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.tanh().abs())
            elif tensor.ndim <= 1:
                tensor.add_(noise, alpha=0.3)
            else:
                deviation = float(tensor.std()) if tensor.numel() > 1 else 0.0
                tensor.add_(noise, alpha=0.3 * deviation or 0.02)


def calibrate(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], seed: int) -> None:
    """Set batch-norm statistics near what the inputs give, in place: mean + 0.3 σ ε, variance times 0.5 …
    1.5.

    In a deep network with random statistics some branches drown others, or softmax saturates, and whatever
    happens there would not show in the outputs. The price is that rounding is amplified, so it is for
    float64.
    """
    generator = torch.Generator().manual_seed(seed)

    def measure(module: torch.nn.Module, shown: tuple[torch.Tensor, ...]) -> None:
        mean, variance = module.running_mean, module.running_var
        if not isinstance(mean, torch.Tensor) or not isinstance(variance, torch.Tensor):
            return
        x = shown[0].transpose(0, 1).flatten(1)
        spread = (
            x.var(1, correction=0) + 0.01 * x.square().mean() + 1e-12
        )  # two alike images must not be torn apart
        noise = torch.randn(2, len(spread), generator=generator, dtype=torch.float64).to(spread)
        mean.copy_(x.mean(1) + 0.3 * spread.sqrt() * noise[0])
        variance.copy_(spread * (0.5 + noise[1].tanh().abs()))

    norms = [
        module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    _outputs(model, {}, inputs)
    for hook in hooks:
        hook.remove()


@dataclass(frozen=True)
class Trial:
    """A model, an input and what it computes. narrow: whether it computes in less than its own precision.

    floor: the relative change of the outputs when every weight is changed in its last bit.
    """

    model: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    dtype: torch.dtype
    narrow: bool
    reference: tuple[torch.Tensor, ...] = ()
    floor: float = 0.0

    @property
    def is_wide(self) -> bool:
        """Whether all is computed in float64."""
        return self.dtype is torch.float64 and not self.narrow

    @property
    def tolerance(self) -> float:
        """The relative error that rounding may make: deep networks without shortcuts amplify it."""
        strict, loose = TOLERANCES[torch.float64], TOLERANCES[torch.float32]
        return min(max(strict, 100 * self.floor), loose) if self.is_wide else loose

    def again(self) -> Trial:
        """The trial with what the model computes now. Raises AlignError when that is not finite or constant
        zero."""
        reference = _outputs(self.model, {}, self.inputs)
        if not reference or any(not torch.isfinite(output).all() for output in reference):
            raise AlignError(
                "the network's outputs are not finite, so its permutation groups cannot be checked"
            )
        trial = replace(self, reference=reference)
        return replace(trial, floor=trial.change(self._nudged())) if self.is_wide else trial

    def randomised(self, seed: int) -> Trial:
        """The trial with its weights moved away from special values, in place."""
        randomise(self.model, seed)
        if self.dtype is torch.float64:
            calibrate(self.model, self.inputs, seed)
        return self.again()

    def _nudged(self) -> State:
        """Every weight changed in its last bit; of tied tensors one name."""
        generator = torch.Generator().manual_seed(0)
        state = self.model.state_dict(keep_vars=True)
        once = {id(tensor): name for name, tensor in state.items() if tensor.is_floating_point()}
        return {
            name: state[name]
            * (1 + 2**-52 * torch.randn(state[name].shape, generator=generator, dtype=torch.float64))
            for name in once.values()
        }

    def error(self, spec: PermutationSpec, permutation: Permutation, *, without: str | None = None) -> float:
        """Largest relative change of an output under a permutation, `without` one tensor taking part."""
        state = self.model.state_dict(keep_vars=True)
        own = {id(tensor): name for name, tensor in state.items()}  # of tied tensors one
        stays = id(state[without]) if without is not None else None
        chosen = {name: state[name] for key, name in own.items() if key != stays}
        return self.change(permuted_state(chosen, spec, permutation))

    def change(self, tensors: State) -> float:
        """Largest relative change of an output with these tensors in the place of the model's own."""
        outputs = _outputs(self.model, tensors, self.inputs)
        pairs = zip(outputs, self.reference, strict=True)
        errors = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs if b.numel()]
        return max(float("inf") if np.isnan(error) else error for error in errors)


def permuted_state(state: State, spec: PermutationSpec, permutation: Permutation) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that a permutation moves, moved."""
    moved = all_permuted(state, spec, permutation)
    return {name: tensor for name, tensor in moved.items() if tensor is not state[name]}


def open_trial(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], dtype: torch.dtype | None) -> Trial:
    """A copy of the model in the widest precision that it runs in and that fits."""
    num_elements = sum(tensor.numel() for tensor in model.state_dict().values())
    wide = dtype or (torch.float64 if 3 * 8 * num_elements < _free_memory() else torch.float32)
    try:
        return _trial(model, inputs, wide)
    except RuntimeError:  # a dtype written into the model's own code
        if wide is not torch.float64 or dtype is not None:
            raise
        return _trial(model, inputs, torch.float32)


def _trial(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], dtype: torch.dtype) -> Trial:
    copy = deepcopy(model).to(dtype).eval()
    shown = tuple(value.to(dtype) if value.is_floating_point() else value for value in inputs)
    mode = _Narrowest()  # type: ignore[no-untyped-call]
    with mode:
        _outputs(copy, {}, shown)
    return Trial(copy, shown, dtype, narrow=dtype is torch.float64 and mode.narrow)


class _Narrowest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether anything is computed in less than float64."""

    narrow = False

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if (
                isinstance(leaf, torch.Tensor)
                and leaf.is_floating_point()
                and leaf.dtype is not torch.float64
            ):
                self.narrow = True
        return result


def _outputs(
    model: torch.nn.Module, moved: State, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """The floating outputs of a model with some of its tensors replaced."""
    model.train().eval()  # it forgets what it remembers of its weights, such as attention biases by position
    with torch.no_grad():
        result = functional_call(model, dict(moved), inputs)
    result = tree_map_only(torch.Tensor, lambda tensor: tensor.detach(), result)
    leaves = [
        leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    ]
    return tuple(leaf.clone() for leaf in leaves)


def _free_memory() -> int:
    """Bytes that may be used: what Linux says, else what looks free, else little."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 4 << 30
