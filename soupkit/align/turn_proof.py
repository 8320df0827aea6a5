"""Proof that a network may be turned: it is turned at random, and must compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from soupkit.align.towers import Tower, towers_of
from soupkit.align.trial import Trial, open_trial, randomise
from soupkit.align.turn import balanced, fold, random_turn, turned
from soupkit.errors import AlignError


@dataclass(frozen=True)
class Proof:
    """The towers with the freedoms that hold, and the largest relative error of the outputs when all are used."""

    towers: tuple[Tower, ...]
    errors: dict[str, float]


def proved(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, seed: int = 0) -> Proof:
    """What of a network may be turned: each freedom by itself, then all at once, on actual and randomised weights.

    A freedom that changes what the network computes is given up. Tolerance and memory: see
    `soupkit.align.verify.verify`. Raises AlignError where nothing remains.
    """
    heads = {name: module.num_heads for name, module in model.named_modules() if hasattr(module, "num_heads")}
    towers = towers_of(model.state_dict(), heads)
    actual = open_trial(model, inputs, None)
    randomised = open_trial(model, inputs, None)
    randomise(randomised.model, seed)
    trials = {"actual": actual.again(), "randomised": randomised.again()}
    tolerance = max(trial.tolerance for trial in trials.values())
    held = []
    for tower in towers:
        for kind in tower.freedoms():
            only = tower
            for other in set(tower.freedoms()) - {kind}:
                only = only.without(other, "")
            errors = [change(trial, [only], seed) for trial in trials.values()]
            if not max(errors) <= tolerance:
                tower = tower.without(kind, f"{kind} changes the outputs by {max(errors):.1e}")
        held += [tower] if tower.freedoms() else []
    together = {name: change(trial, held, seed) for name, trial in trials.items()}
    if not held or not max(together.values()) <= tolerance:
        raise AlignError("turned, this network does not compute the same", hint="align without --rotate")
    return Proof(tuple(held), together)


def change(trial: Trial, towers: Sequence[Tower], seed: int) -> float:
    """The relative change of the outputs under folding, balancing and a random turn. inf where it cannot be folded."""
    tensors = {name: tensor.detach() for name, tensor in trial.model.state_dict().items()}
    try:
        folded = fold(tensors, towers)
    except AlignError:
        return float("inf")
    even = turned(folded, towers, balanced(folded, towers))
    moved = turned(even, towers, random_turn(towers, even, seed))
    return trial.change({name: moved[name].to(tensor.dtype) for name, tensor in tensors.items()})
