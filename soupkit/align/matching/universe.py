"""Matching more than two models to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from soupkit.align.matching.assign import Order
from soupkit.align.matching.frank_wolfe import frank_wolfe
from soupkit.align.matching.match import TOLERANCE, Match, best_match, in_random_order, refine
from soupkit.align.matching.similarity import Pair, all_permuted, sum_of_pairs
from soupkit.align.permutation import compose, count_changed, identity, inverse
from soupkit.align.spec import PermutationSpec

Tensors = dict[str, torch.Tensor]
MAX_ROUNDS = 100
Universe = Literal["merge-many", "frank-wolfe"]


@dataclass(frozen=True)
class Alignment:
    """One match per model, that of the one at place `to` the identity.

    num_rounds: of refinement that changed any. sum_of_pairs: Σ_{i<j} ⟨π_i(θ_i), π_j(θ_j)⟩ after it.
    """

    matches: list[Match]
    to: int
    num_rounds: int = 0
    sum_of_pairs: float = 0.0


def align_all(
    spec: PermutationSpec,
    models: Sequence[Tensors],
    *,
    to: int | None,
    seed: int = 0,
    restarts: int = 0,
    universe: Universe = "merge-many",
) -> Alignment:
    """Match every model to the one at place `to` (None: the medoid), then, of three or more, all to one
    another.

    universe: "merge-many" matches each to the mean of the others (`merge_many`); "frank-wolfe" also tries
    C2M3 (`matching.frank_wolfe`), from the same start and refined likewise, and keeps what has the larger sum
    of similarities over all pairs. Memory: all models in float32, two of them twice. Cost: one search per
    model (medoid: per pair), see `soupkit.align.matching.match.match_weights`.
    """
    if to is None:
        to = medoid(spec, models, seed=seed) if len(models) > 2 else 0
    matches = []
    for place, model in enumerate(models):
        pair = Pair(spec, models[to], model)
        stays = Match(identity(spec), 1.0, 1.0, "identity")
        matches.append(stays if place == to else best_match(pair, seed=seed, restarts=restarts))
    start = Alignment(matches, to)
    if len(models) < 3 or not any(each.num_changed for each in matches):
        return start
    merged = merge_many(spec, models, start, seed=seed)
    if universe == "merge-many":
        return merged
    return max(merged, through_the_hull(spec, models, start, seed=seed), key=lambda found: found.sum_of_pairs)


def through_the_hull(
    spec: PermutationSpec, models: Sequence[Tensors], start: Alignment, *, seed: int = 0
) -> Alignment:
    """Frank–Wolfe from an alignment, seen from the model at `to`, then refined as `merge_many` does."""
    found = frank_wolfe(spec, models, [match.permutation for match in start.matches])
    back = inverse(found[start.to], spec)
    matches = [
        replace(match, permutation=compose(permutation, back, spec=spec), start="frank-wolfe")
        for match, permutation in zip(start.matches, found, strict=True)
    ]
    return merge_many(spec, models, replace(start, matches=matches), seed=seed)


def medoid(spec: PermutationSpec, models: Sequence[Tensors], *, seed: int = 0) -> int:
    """The model with the largest sum of similarities to the others, each pair aligned. Cost: K (K − 1) / 2
    searches."""
    similarity = np.zeros((len(models), len(models)))
    for i in range(len(models)):
        for j in range(i):
            found = best_match(Pair(spec, models[i], models[j]), seed=seed)
            similarity[i, j] = similarity[j, i] = found.cosine
    return int(similarity.sum(1).argmax())


def merge_many(
    spec: PermutationSpec, models: Sequence[Tensors], start: Alignment, *, seed: int = 0
) -> Alignment:
    """Match each model to the mean of the others as they lie, in random order, until none changes.

    MergeMany (Ainsworth, Hayase, Srinivasa 2022, arXiv:2209.04836, alg. 2), but from an alignment, and the
    reference stays. Each change raises Σ_{i<j} ⟨π_i(θ_i), π_j(θ_j)⟩, which therefore never falls below that
    of `start`.
    """
    current = [
        all_permuted(model, spec, match.permutation)
        for model, match in zip(models, start.matches, strict=True)
    ]
    permutations = [dict(match.permutation) for match in start.matches]
    random = np.random.default_rng([seed, len(models)])
    others = [place for place in range(len(models)) if place != start.to]
    num_rounds = 0
    for _ in range(MAX_ROUNDS):
        changed = False
        for place in random.permutation(others).tolist():
            pair = Pair(spec, mean_without(current, place), current[place])
            before = pair.objective()
            orders = refine(pair, identity(spec), in_random_order([seed, num_rounds, place]))
            if count_changed(orders) and pair.objective() > before + TOLERANCE * pair.norm():
                permutations[place] = compose(permutations[place], orders, spec=spec)
                current[place], changed = pair.moving, True
        if not changed:
            break
        num_rounds += 1
    matches = [
        _rematched(match, permutation, models[start.to], tensors, spec)
        for match, permutation, tensors in zip(start.matches, permutations, current, strict=True)
    ]
    return Alignment(matches, start.to, num_rounds, sum_of_pairs(current))


def mean_without(models: Sequence[Tensors], place: int) -> Tensors:
    """The mean of all models but one; tensors of integers are the first's."""
    rest = [model for number, model in enumerate(models) if number != place]
    floating = [name for name, tensor in rest[0].items() if tensor.is_floating_point()]
    return rest[0] | {
        name: torch.stack([model[name] for model in rest]).mean(0).contiguous() for name in floating
    }


def _rematched(
    match: Match, permutation: dict[str, Order], target: Tensors, moved: Tensors, spec: PermutationSpec
) -> Match:
    pair = Pair(spec, target, moved)
    return replace(match, permutation=permutation, cosine=pair.objective() / max(pair.norm(), 1e-300))
