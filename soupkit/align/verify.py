"""Proof that permutation groups keep the function: the model is run, permuted, and run again.

The function check permutes all groups at random at once, on the weights as they are and on a clone with every parameter
and buffer randomised, since zero-initialised gains, layer scales and default batch-norm statistics hide errors. Where
it fails, the culprits are found by bisection and pinned. The negative control leaves one tensor unpermuted: the output
must change, else nothing was checked there, and the group is reported as unobservable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from soupkit.align.permutation import random_permutation
from soupkit.align.spec import Permutation, PermutationSpec
from soupkit.errors import AlignError

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
NUM_CONTROLS = 16
ROUNDS = 4
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Verification:
    """What the checks found. spec: the groups that passed, culprits pinned.

    errors: relative error of the outputs with all groups permuted, on "actual" and "randomised" weights. tolerance: the
    strictest one that they meet. culprits: families that were pinned since they changed the function. controls:
    "family without tensor" → relative change of the outputs. unobservable: those too small for the check to notice.
    """

    spec: PermutationSpec
    errors: Mapping[str, float]
    tolerance: float
    dtype: str
    culprits: tuple[str, ...] = ()
    controls: Mapping[str, float] = field(default_factory=dict)
    unobservable: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What was checked, without the spec."""
        return {
            "errors": dict(self.errors),
            "tolerance": self.tolerance,
            "dtype": self.dtype,
            "culprits": list(self.culprits),
            "controls": dict(self.controls),
            "unobservable": list(self.unobservable),
        }


def verify(
    model: torch.nn.Module,
    spec: PermutationSpec,
    inputs: tuple[torch.Tensor, ...],
    *,
    seed: int = 0,
    num_controls: int = NUM_CONTROLS,
    dtype: torch.dtype | None = None,
) -> Verification:
    """Check that the groups keep what a model in eval mode computes; pin those that do not.

    dtype: of the check; None takes float64 where it fits into memory and the model runs in it, else float32.
    Tolerance: relative 1e-10 in float64, 1e-4 in float32 or where the model itself computes in less.
    Memory: a copy of the model in `dtype`, twice the moved tensors. Cost: 4 + num_controls forward passes.
    Raises AlignError when the outputs are not finite, so that nothing can be said.
    """
    trial = open_trial(model, inputs, dtype)
    errors: dict[str, float] = {}
    culprits: list[str] = []
    for number, name in enumerate(("actual", "randomised")):
        if name == "randomised":
            randomise(trial.model, seed)
            calibrate(trial.model, trial.inputs, seed)
        trial = trial.again()
        for attempt in range(ROUNDS):
            permutation = moving_permutation(spec, seed + 17 * attempt + number)
            errors[name] = trial.error(spec, permutation)
            if errors[name] <= trial.tolerance:
                break
            found = _culprits(trial, spec, permutation, list(spec.families()))
            culprits += found
            spec = spec.pin(found, reason="the function check failed")
        else:
            raise AlignError("the function check still fails after its culprits were pinned", hint="please report it")
    controls = negative_controls(trial, spec, seed=seed, num_controls=num_controls)
    met = TOLERANCES[trial.dtype] if max(errors.values()) <= TOLERANCES[trial.dtype] else trial.tolerance
    unobservable = tuple(name for name, change in controls.items() if change <= 10 * met)
    kind = str(trial.dtype).removeprefix("torch.")
    return Verification(spec, errors, met, kind, tuple(culprits), controls, unobservable)


def moving_permutation(spec: PermutationSpec, seed: int, *, groups: Iterable[str] | None = None) -> Permutation:
    """Random permutations of which none is the identity."""
    drawn = random_permutation(spec, seed, groups=groups)
    return {
        name: np.roll(index, 1) if np.array_equal(index, np.arange(len(index))) else index
        for name, index in drawn.items()
    }


def permuted_state(state: State, spec: PermutationSpec, permutation: Permutation) -> dict[str, torch.Tensor]:
    """The tensors of a state dict that a permutation moves, moved."""
    moved: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for axis in range(tensor.ndim):
            index = spec.index(name, axis, permutation)
            if index is not None:
                moved[name] = moved.get(name, tensor).index_select(axis, torch.from_numpy(index).to(tensor.device))
    return moved


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Move every floating parameter and persistent buffer away from special values, in place.

    Variances become 0.5 … 1.5; vectors get noise of 0.3; others of 0.3 of their own deviation (0.02 where that is 0).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not tensor.is_floating_point() or not tensor.numel():
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
    """Set batch-norm statistics near what the inputs give, in place: mean + 0.3 σ ε, variance times 0.5 … 1.5.

    In a deep network with random statistics some branches drown others, or softmax saturates, and whatever happens
    there would not show in the outputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def measure(module: torch.nn.Module, shown: tuple[torch.Tensor, ...]) -> None:
        mean, variance = module.running_mean, module.running_var
        if not isinstance(mean, torch.Tensor) or not isinstance(variance, torch.Tensor):
            return
        x = shown[0].transpose(0, 1).flatten(1)
        spread = x.var(1, correction=0)
        spread = spread + 0.01 * spread.mean() + 1e-12
        noise = torch.randn(2, len(spread), generator=generator, dtype=torch.float64).to(spread)
        mean.copy_(x.mean(1) + 0.3 * spread.sqrt() * noise[0])
        variance.copy_(spread * (0.5 + noise[1].tanh().abs()))

    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    _outputs(model, {}, inputs)
    for hook in hooks:
        hook.remove()


@dataclass(frozen=True)
class Trial:
    """A model, an input and what it computes. narrow: whether it computes in less than its own precision."""

    model: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    dtype: torch.dtype
    narrow: bool
    reference: tuple[torch.Tensor, ...] = ()

    @property
    def tolerance(self) -> float:
        """The relative error that rounding may make."""
        return TOLERANCES[torch.float32 if self.narrow else self.dtype]

    def again(self) -> Trial:
        """The trial with what the model computes now. Raises AlignError when that is not finite or constant zero."""
        reference = _outputs(self.model, {}, self.inputs)
        if not reference or any(not torch.isfinite(output).all() for output in reference):
            raise AlignError("the network's outputs are not finite, so its permutation groups cannot be checked")
        return replace(self, reference=reference)

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


def negative_controls(trial: Trial, spec: PermutationSpec, *, seed: int, num_controls: int) -> dict[str, float]:
    """For a random choice of families: how much the output changes when one of their tensors stays as it is.

    A family that lives in a single tensor (Q and K without biases) has no such control.
    """
    generator = np.random.default_rng(seed)
    families = [
        (family, groups)
        for family, groups in spec.families().items()
        if len({tensor for tensor, _ in spec.attached(groups[0])}) > 1
    ]
    chosen = generator.permutation(len(families))[:num_controls]
    controls = {}
    for number in sorted(chosen.tolist()):
        family, groups = families[number]
        permutation = moving_permutation(spec, seed, groups=groups)
        tensors = sorted({tensor for group in groups for tensor, _ in spec.attached(group)})
        without = tensors[int(generator.integers(len(tensors)))]
        controls[f"{family} without {without}"] = trial.error(spec, permutation, without=without)
    return controls


def _culprits(trial: Trial, spec: PermutationSpec, permutation: Permutation, families: Sequence[str]) -> list[str]:
    """The families that change the function, by bisection; all of them where only several together do."""
    members = spec.families()
    groups = {group for family in families for group in members[family]}
    if trial.error(spec, {name: index for name, index in permutation.items() if name in groups}) <= trial.tolerance:
        return []
    if len(families) == 1:
        return list(families)
    half = len(families) // 2
    found = [name for part in (families[:half], families[half:]) for name in _culprits(trial, spec, permutation, part)]
    return found or list(families)


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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dtype is not torch.float64:
                self.narrow = True
        return result


def _outputs(model: torch.nn.Module, moved: State, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The floating outputs of a model with some of its tensors replaced."""
    model.train().eval()  # it forgets what it remembers of its weights, such as attention biases by position
    with torch.no_grad():
        result = functional_call(model, dict(moved), inputs)
    result = tree_map_only(torch.Tensor, lambda tensor: tensor.detach(), result)
    leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    return tuple(leaf.clone() for leaf in leaves)


def _free_memory() -> int:
    """Bytes that may be used: what Linux says, else what looks free, else little."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 4 << 30
