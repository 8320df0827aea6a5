"""Matching more than two models to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from soupkit.align.assign import Order
from soupkit.align.match import TOLERANCE, Match, best_match, in_random_order, refine
from soupkit.align.permutation import compose, count_changed, identity
from soupkit.align.similarity import Pair, permuted
from soupkit.align.spec import PermutationSpec

Tensors = dict[str, torch.Tensor]
MAX_ROUNDS = 100


@dataclass(frozen=True)
class Alignment:
    """One match per model, that of the one at place `to` the identity; num_rounds: of refinement that changed any."""

    matches: list[Match]
    to: int
    num_rounds: int = 0


def align_all(
    spec: PermutationSpec, models: Sequence[Tensors], *, to: int | None, seed: int = 0, restarts: int = 0
) -> Alignment:
    """Match every model to the one at place `to` (None: the medoid), then each to the mean of the others.

    Memory: all models in float32, two of them twice. Cost: one search per model (medoid: per pair), see
    `soupkit.align.match.match_weights`.
    """
    if to is None:
        to = medoid(spec, models, seed=seed) if len(models) > 2 else 0
    matches = []
    for place, model in enumerate(models):
        pair = Pair(spec, models[to], model)
        stays = Match(identity(spec), 1.0, 1.0, "identity")
        matches.append(stays if place == to else best_match(pair, seed=seed, restarts=restarts))
    start = Alignment(matches, to)
    return (
        start
        if len(models) < 3 or not any(each.num_changed for each in matches)
        else merge_many(spec, models, start, seed=seed)
    )


def medoid(spec: PermutationSpec, models: Sequence[Tensors], *, seed: int = 0) -> int:
    """The model with the largest sum of similarities to the others, each pair aligned. Cost: K (K − 1) / 2 searches."""
    similarity = np.zeros((len(models), len(models)))
    for i in range(len(models)):
        for j in range(i):
            found = best_match(Pair(spec, models[i], models[j]), seed=seed)
            similarity[i, j] = similarity[j, i] = found.cosine
    return int(similarity.sum(1).argmax())


def merge_many(spec: PermutationSpec, models: Sequence[Tensors], start: Alignment, *, seed: int = 0) -> Alignment:
    """Match each model to the mean of the others as they lie, in random order, until none changes.

    MergeMany (Ainsworth, Hayase, Srinivasa 2022, arXiv:2209.04836, alg. 2), but from an alignment, and the reference
    stays. Each change raises Σ_{i<j} ⟨π_i(θ_i), π_j(θ_j)⟩, which therefore never falls below that of `start`.
    """
    current = [_moved(spec, model, match.permutation) for model, match in zip(models, start.matches, strict=True)]
    permutations = [dict(match.permutation) for match in start.matches]
    random = np.random.default_rng([seed, len(models)])
    others = [place for place in range(len(models)) if place != start.to]
    num_rounds = 0
    for _ in range(MAX_ROUNDS):
        changed = False
        for place in random.permutation(others).tolist():
            pair = Pair(spec, _mean_without(current, place), current[place])
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
    return Alignment(matches, start.to, num_rounds)


def sum_of_pairs(models: Sequence[Tensors]) -> float:
    """Σ_{i<j} ⟨θ_i, θ_j⟩, in float64: what is raised."""
    total = 0.0
    for name in models[0]:
        flat = [model[name].double().reshape(-1) for model in models]
        mean = torch.stack(flat).sum(0)
        total += (float(mean.dot(mean)) - sum(float(each.dot(each)) for each in flat)) / 2
    return total


def _mean_without(models: Sequence[Tensors], place: int) -> Tensors:
    rest = [model for number, model in enumerate(models) if number != place]
    return {name: torch.stack([model[name] for model in rest]).mean(0).contiguous() for name in rest[0]}


def _moved(spec: PermutationSpec, model: Tensors, permutation: dict[str, Order]) -> Tensors:
    return {name: permuted(tensor, spec, name, permutation) for name, tensor in model.items()}


def _rematched(
    match: Match, permutation: dict[str, Order], target: Tensors, moved: Tensors, spec: PermutationSpec
) -> Match:
    pair = Pair(spec, target, moved)
    return replace(match, permutation=permutation, cosine=pair.objective() / max(pair.norm(), 1e-300))
