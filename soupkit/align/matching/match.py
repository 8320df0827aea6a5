"""Weight matching: which unit of one model does the work of which unit of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from soupkit.align.matching.anchored import anchored_order, anchored_start
from soupkit.align.matching.assign import Order, best_step
from soupkit.align.matching.similarity import Pair, objective_names
from soupkit.align.permutation import compose, count_changed, identity, random_permutation
from soupkit.align.spec import Permutation, PermutationSpec
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.source import name_of
from soupkit.errors import CheckpointError
from soupkit.task.weights import to_torch

MAX_VISITS = 100
"""Visits of one group before it is left as it is; no model seen came near."""
TOLERANCE = 1e-7
"""A gain below this share of ‖target‖ · ‖other‖ is rounding."""
CERTAIN = 1e-4
"""A gain above this share cannot be."""
PATIENCE = 3
"""Rounds from the identity until it must be ahead of what the anchored start has found: models that share a
start are done by then, others seldom catch up."""

Queue = Callable[[set[str]], list[str]]


@dataclass(frozen=True)
class Match:
    """A permutation of one model's units that makes it most like another, and how it was found.

    cosine_before, cosine: of the two models' permutable weights, in float64. start: the candidate that won.
    """

    permutation: dict[str, Order]
    cosine_before: float
    cosine: float
    start: str

    @property
    def num_changed(self) -> int:
        """Groups whose order changes."""
        return count_changed(self.permutation)

    def describe(self) -> str:
        """One line for the reader."""
        changed = f"{self.num_changed} of {len(self.permutation)} groups changed"
        if self.num_changed == 0:
            return f"identity, {changed}"
        return f"{changed}, cosine {self.cosine_before:.4f} → {self.cosine:.4f} ({self.start} start)"


def match_weights(
    spec: PermutationSpec,
    target: Mapping[str, Array],
    other: Mapping[str, Array],
    *,
    seed: int = 0,
    restarts: int = 0,
    device: torch.device | None = None,
) -> Match:
    """The permutation π of `other` with the largest Σ ⟨target, π(other)⟩ that the search finds, never below
    identity.

    Weight matching (Ainsworth, Hayase, Srinivasa 2022, arXiv:2209.04836, alg. 1): one group after the other,
    each by a linear assignment with the rest fixed, until none gains. Beyond the paper: groups are taken in
    the order in which they can be known (see `soupkit.align.matching.anchored`), once from the anchored start
    and once from the identity; `restarts` more searches go from random permutations in random orders; the
    best is kept, of equals the identity itself; heads are matched together with the units inside them. Cost:
    2 N multiplications per weight, visit and group of N units that it has an axis of, and one assignment,
    O(N³); memory: both models in float32, the other one twice, and N² of the largest group in float64.
    """
    device = device or torch.device("cpu")
    pair = Pair(spec, loaded(spec, target, device), loaded(spec, other, device))
    return best_match(pair, seed=seed, restarts=restarts)


def best_match(pair: Pair, *, seed: int = 0, restarts: int = 0) -> Match:
    """Search from every start and keep the best: see `match_weights`. `pair` stays as it is."""
    found, winner = identity(pair.spec), "identity"
    norm, before = pair.norm(), pair.objective()
    if norm == 0:
        return Match(found, 1.0, 1.0, winner)
    best, order = before, anchored_order(pair)
    in_order: Queue = lambda waiting: [mover for mover in order if mover in waiting]  # noqa: E731
    for start in ("anchored", "identity", *(f"random {k + 1}" for k in range(restarts))):
        trial, permutation, queue = pair.copy(), identity(pair.spec), in_order
        if start == "anchored":
            permutation = anchored_start(trial, order)
        elif start != "identity":
            number = int(start.removeprefix("random "))
            permutation, queue = (
                random_permutation(pair.spec, 1000 * seed + number),
                in_random_order([seed, number]),
            )
            trial.move(list(trial.target), permutation)
        permutation = refine(trial, permutation, queue, floor=best if start == "identity" else -np.inf)
        value = trial.objective()
        if value > best + TOLERANCE * norm:
            found, winner, best = permutation, start, value
    return Match(found, before / norm, best / norm, winner)


def in_random_order(seed: Sequence[int]) -> Queue:
    """Each round in a new order, as published."""
    random = np.random.default_rng(seed)
    return lambda waiting: random.permutation(sorted(waiting)).tolist()


def refine(pair: Pair, permutation: Permutation, queue: Queue, *, floor: float = -np.inf) -> dict[str, Order]:
    """Coordinate ascent on `pair`, to which `permutation` was applied already, until no mover gains.

    queue: the order in which those that wait are visited. A mover waits again only after one has changed that
    its similarities depend on. floor: given up when the objective is below it after PATIENCE rounds. Returns
    the whole permutation.
    """
    found = dict(permutation)
    visits = dict.fromkeys(pair.cells, MAX_VISITS)
    waiting = set(visits)
    num_rounds = 0
    while waiting and (num_rounds < PATIENCE or pair.objective() >= floor):
        num_rounds += 1
        for mover in queue(waiting):
            waiting.discard(mover)
            visits[mover] -= 1
            orders = improve(pair, mover)
            if orders:
                found = compose(found, orders, spec=pair.spec)
                waiting |= {other for other in pair.neighbours(mover) if visits[other] > 0}
    return found


def improve(pair: Pair, mover: str) -> dict[str, Order]:
    """The best order of one mover with the rest fixed, applied to `pair`; empty when the objective does not
    rise.

    The sum is linear in the order unless the mover lies on two axes of one tensor; there, and where the gain
    is small enough to be rounding, it is computed again in float64, and what was no gain is undone.
    """
    names = pair.names(mover)
    step = best_step(pair, mover, pair.cells[mover])
    if step.gain <= TOLERANCE * pair.norm(names):
        return {}
    if step.gain > CERTAIN * pair.norm(names) and mover not in pair.neighbours(mover):
        pair.move(names, step.orders)
        return step.orders
    before, kept = pair.objective(names), {name: pair.moving[name] for name in names}
    pair.move(names, step.orders)
    if pair.objective(names) <= before:
        pair.moving.update(kept)
        return {}
    return step.orders


def loaded(
    spec: PermutationSpec, model: Mapping[str, Array], device: torch.device
) -> dict[str, torch.Tensor]:
    """The tensors that matching looks at, float32 on a device. Raises CheckpointError for one that is not
    finite."""
    found = {}
    for name in objective_names(spec, model):
        tensor = to_torch(np.asarray(model[name]))
        if tensor.is_floating_point():
            found[name] = tensor.to(device=device, dtype=torch.float32).contiguous()
            if not bool(found[name].isfinite().all()):
                raise CheckpointError(f"{name_of(model, 0)}: {name} is not finite")
    return found
