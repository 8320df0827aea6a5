"""Proof that a network may be turned: it is turned at random, and must compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from soupkit.align.graph.trial import Trial, open_trial
from soupkit.align.turns.towers import Tower, towers_of
from soupkit.align.turns.turn import balanced, fold, random_turn, turned
from soupkit.errors import AlignError


@dataclass(frozen=True)
class Proof:
    """The towers with the freedoms that hold, and the largest relative error of the outputs when all are
    used."""

    towers: tuple[Tower, ...]
    errors: dict[str, float]


def proved(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, seed: int = 0) -> Proof:
    """What of a network may be turned: all at once, on actual and randomised weights; else each freedom by
    itself.

    A freedom that changes what the network computes is given up. Tolerance: see `align.graph.verify`. Memory:
    three copies of the model in float64. Raises AlignError where nothing remains.
    """
    heads = {name: module.num_heads for name, module in model.named_modules() if hasattr(module, "num_heads")}
    towers = list(towers_of(model.state_dict(), heads))
    actual, other = (open_trial(model, inputs, None) for _ in range(2))
    trials = {"actual": actual.again(), "randomised": other.randomised(seed)}
    tolerance = max(trial.tolerance for trial in trials.values())
    for attempt in range(2):
        errors = {name: change(trial, towers, seed) for name, trial in trials.items()}
        if towers and max(errors.values()) <= tolerance:
            return Proof(tuple(towers), errors)
        if attempt == 0:
            towers = [held for tower in towers if (held := _held(tower, trials, tolerance, seed)).freedoms()]
    raise AlignError("turned, this network does not compute the same", hint="align without --rotate")


def _held(tower: Tower, trials: Mapping[str, Trial], tolerance: float, seed: int) -> Tower:
    """The tower with those of its freedoms that hold by themselves."""
    for kind in tower.freedoms():
        error = max(change(trial, [tower.only([kind])], seed) for trial in trials.values())
        if not error <= tolerance:
            tower = tower.without(kind, f"{kind} changes the outputs by {error:.1e}")
    return tower


def change(trial: Trial, towers: Sequence[Tower], seed: int) -> float:
    """The relative change of the outputs under folding, balancing and a random turn. inf where it cannot be
    folded."""
    tensors = {name: tensor.detach() for name, tensor in trial.model.state_dict().items()}
    try:
        folded = fold(tensors, towers)
    except AlignError:
        return float("inf")
    even = turned(folded, towers, balanced(folded, towers))
    moved = turned(even, towers, random_turn(towers, even, seed))
    return trial.change({name: moved[name].to(tensor.dtype) for name, tensor in tensors.items()})
