"""Proof that permutation groups keep the function: the model is run, permuted, and run again.

The function check permutes all groups at random at once, on the weights as they are and on a clone with every
parameter and buffer randomised, since zero-initialised gains, layer scales and default batch-norm statistics
hide errors. Where it fails, the culprits are found by bisection and pinned. The negative control leaves one
tensor unpermuted: the output must change, else nothing was checked there, and the group is reported as
unobservable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from soupkit.align.graph.trial import TOLERANCES, Trial, open_trial
from soupkit.align.permutation import random_permutation
from soupkit.align.spec import Permutation, PermutationSpec
from soupkit.errors import AlignError
from soupkit.jsons import Json

NUM_CONTROLS = 16
ROUNDS = 4


@dataclass(frozen=True)
class Verification:
    """What the checks found. spec: the groups that passed, culprits pinned.

    errors: relative error of the outputs with all groups permuted, on "actual" and "randomised" weights.
    tolerance: the strictest one that they meet. culprits: families that were pinned since they changed the
    function. controls: "family without tensor" → relative change of the outputs. unobservable: those too
    small for the check to notice.
    """

    spec: PermutationSpec
    errors: Mapping[str, float]
    tolerance: float
    dtype: str
    culprits: tuple[str, ...] = ()
    controls: Mapping[str, float] = field(default_factory=dict)
    unobservable: tuple[str, ...] = ()

    def to_json(self) -> Json:
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
    Tolerance: relative 1e-10 in float64 (100 times what a change of the last bits of all weights makes, where
    that is more), 1e-4 in float32 or where the model itself computes in less.
    Memory: a copy of the model in `dtype`, twice the moved tensors. Cost: 7 + num_controls forward passes.
    Raises AlignError when the outputs are not finite, so that nothing can be said.
    """
    trial = open_trial(model, inputs, dtype)
    errors: dict[str, float] = {}
    culprits: list[str] = []
    for number, name in enumerate(("actual", "randomised")):
        trial = trial.randomised(seed) if name == "randomised" else trial.again()
        for attempt in range(ROUNDS):
            permutation = moving_permutation(spec, seed + 17 * attempt + number)
            errors[name] = trial.error(spec, permutation)
            if errors[name] <= trial.tolerance:
                break
            found = _culprits(trial, spec, permutation, list(spec.families()))
            culprits += found
            spec = spec.pin(found, reason="the function check failed")
        else:
            raise AlignError(
                "the function check still fails after its culprits were pinned", hint="please report it"
            )
    controls = negative_controls(trial, spec, seed=seed, num_controls=num_controls)
    met = TOLERANCES[trial.dtype] if max(errors.values()) <= TOLERANCES[trial.dtype] else trial.tolerance
    unobservable = tuple(name for name, change in controls.items() if change <= 10 * met)
    kind = str(trial.dtype).removeprefix("torch.")
    return Verification(spec, errors, met, kind, tuple(culprits), controls, unobservable)


def moving_permutation(
    spec: PermutationSpec, seed: int, *, groups: Iterable[str] | None = None
) -> Permutation:
    """Random permutations of which none is the identity."""
    drawn = random_permutation(spec, seed, groups=groups)
    return {
        name: np.roll(index, 1) if np.array_equal(index, np.arange(len(index))) else index
        for name, index in drawn.items()
    }


def negative_controls(
    trial: Trial, spec: PermutationSpec, *, seed: int, num_controls: int
) -> dict[str, float]:
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


def _culprits(
    trial: Trial, spec: PermutationSpec, permutation: Permutation, families: Sequence[str]
) -> list[str]:
    """The families that change the function, by bisection; all of them where only several together do."""
    members = spec.families()
    groups = {group for family in families for group in members[family]}
    if (
        trial.error(spec, {name: index for name, index in permutation.items() if name in groups})
        <= trial.tolerance
    ):
        return []
    if len(families) == 1:
        return list(families)
    half = len(families) // 2
    found = [
        name
        for part in (families[:half], families[half:])
        for name in _culprits(trial, spec, permutation, part)
    ]
    return found or list(families)
