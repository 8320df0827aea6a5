"""Matching beyond permutations: the turn of one transformer that makes it most like another.

Every step is exact for its part with the rest fixed, so ⟨target, turned other⟩ never falls. Shape suffixes: D
width of the stream, H heads, d units of a head, X everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from soupkit.align.matching.assign import assign
from soupkit.align.matching.match import best_match, in_random_order, refine
from soupkit.align.matching.similarity import Pair, all_permuted, objective_names
from soupkit.align.matching.universe import mean_without
from soupkit.align.permutation import compose, identity
from soupkit.align.spec import Permutation, PermutationSpec
from soupkit.align.turns.towers import Attention, Stream, Tower
from soupkit.align.turns.turn import (
    Tensors,
    Turn,
    balanced,
    complement_of_ones,
    heads,
    matrix,
    stream_shifts,
    turned,
)

MAX_ROUNDS = 50
TOLERANCE = 1e-6
"""A round that raises the cosine by less is the last."""


@dataclass(frozen=True)
class Found:
    """First the permutation, then the turn, both of the folded network; cosines with the target of what is
    not 1."""

    permutation: Permutation
    turn: Turn
    cosine_before: float
    cosine: float
    num_rounds: int = 0


@dataclass(frozen=True)
class Matching:
    """What may be moved, of networks of one architecture; folded, in float64."""

    spec: PermutationSpec
    towers: Sequence[Tower]
    seed: int = 0
    restarts: int = 0
    advance: Callable[[], None] = lambda: None

    @cached_property
    def rest(self) -> PermutationSpec:
        """The groups that no turn reaches."""
        axes = {(tower.stream.a_norm, 0) for tower in self.towers if tower.stream is not None}
        attentions = [attention for tower in self.towers for attention in tower.attentions]
        axes |= {(attention.qkv.weight, 0) for attention in attentions}
        axes |= {(attention.out.weight, 1) for attention in attentions}
        return self.spec.pin([group for group in self.spec.groups if axes & set(self.spec.attached(group))])


@dataclass(frozen=True)
class _State:
    """A network as moved so far."""

    permutation: Permutation
    turn: Turn
    tensors: Tensors
    num_rounds: int = 0


def match_turned(models: Sequence[Tensors], to: int, matching: Matching) -> list[Found]:
    """For each folded network the permutation and the turn that make it most like the one at place `to`.

    Each starts at its best permutation (`matching.match.best_match`), heads balanced; then in turn the
    orthogonal O of each stream, the order and orthogonal maps of each attention's heads, and the units that
    nothing else reaches, until the cosine rises no more. Of three or more, each is then matched to the mean
    of the others in the same way, as MergeMany does (Ainsworth et al. 2022, arXiv:2209.04836, alg. 2); the
    one at `to` is only balanced. Memory: two copies of all in float64; cost per round: 2 D multiplications
    per weight, one SVD per stream and per pair of heads.
    """
    turns = [balanced(model, matching.towers) for model in models]
    even = [turned(model, matching.towers, turn) for model, turn in zip(models, turns, strict=True)]
    weights = _weights(even[to], matching.towers)
    before = [_cosine(even[to], model, weights) for model in even]
    states = [_State({}, turns[to], even[to])] * len(models)
    others = [place for place in range(len(models)) if place != to]
    for place in others:
        states[place], _ = _ascend(even[to], _start(even[to], models[place], even[place], matching), matching)
    for _ in range(MAX_ROUNDS if len(models) > 2 else 0):
        highest = 0.0
        for place in others:
            mean = mean_without([state.tensors for state in states], place)
            states[place], rise = _ascend(mean, states[place], matching, max_rounds=1)
            highest = max(highest, rise)
        if highest <= TOLERANCE:
            break
    after = [_cosine(even[to], state.tensors, weights) for state in states]
    return [
        Found(state.permutation, state.turn, first, last, state.num_rounds)
        for state, first, last in zip(states, before, after, strict=True)
    ]


def _start(target: Tensors, folded: Tensors, even: Tensors, matching: Matching) -> _State:
    """The best permutation of the balanced network, applied to the folded one, which is balanced anew."""
    names = objective_names(matching.spec, target)
    first = best_match(
        _pair(matching.spec, names, target, even), seed=matching.seed, restarts=matching.restarts
    )
    moved = all_permuted(folded, matching.spec, first.permutation)
    turn = balanced(moved, matching.towers)
    return _State(first.permutation, turn, turned(moved, matching.towers, turn))


def _ascend(
    target: Tensors, state: _State, matching: Matching, *, max_rounds: int = MAX_ROUNDS
) -> tuple[_State, float]:
    """Alternate over streams, heads and units until the cosine rises no more; also returns by how much it
    rose."""
    weights, rest = _weights(target, matching.towers), matching.rest
    names, start = objective_names(rest, target), _cosine(target, state.tensors, weights)
    cosine = start
    for _ in range(max_rounds):
        current, turn = state.tensors, state.turn
        for best in (best_rotations, best_heads):
            step = best(target, current, matching.towers)
            current, turn = turned(current, matching.towers, step), turn.then(step)
        queue = in_random_order([matching.seed, state.num_rounds])
        units = refine(_pair(rest, names, target, current), identity(rest), queue)
        permutation = compose(state.permutation, units, spec=matching.spec)
        state = _State(permutation, turn, all_permuted(current, rest, units), state.num_rounds + 1)
        matching.advance()
        last, cosine = cosine, _cosine(target, state.tensors, weights)
        if cosine <= last + TOLERANCE:
            break
    return state, cosine - start


def best_rotations(target: Tensors, other: Tensors, towers: Sequence[Tower]) -> Turn:
    """For every stream the orthogonal O with O·1 = 1 that maximises ⟨target, rotated other⟩.

    Orthogonal Procrustes (Schönemann 1966, doi:10.1007/BF02289451) on the complement of 1: with Q a basis of
    it and U Σ Vᵀ = Qᵀ S Q, S[i, j] = Σ ⟨direction i of the target, direction j of the other⟩, it is Q U Vᵀ Qᵀ
    + 1 1ᵀ / D.
    """
    rotations = {}
    for tower in towers:
        if tower.stream is not None:
            pairs = zip(_directions(target, tower.stream), _directions(other, tower.stream), strict=True)
            similarity = sum((x @ y.T for x, y in pairs), start=torch.zeros((), dtype=torch.float64))
            size = len(similarity)
            basis = complement_of_ones(size)
            inner = procrustes(basis.T @ similarity @ basis)
            rotations[tower.name] = basis @ inner @ basis.T + torch.full(
                (size, size), 1 / size, dtype=torch.float64
            )
    return Turn(rotations=rotations)


def best_heads(target: Tensors, other: Tensors, towers: Sequence[Tower]) -> Turn:
    """For every attention the order of its heads, and an orthogonal M and N for each, that are best together.

    A pair of heads is worth ‖Q Q'ᵀ + K K'ᵀ‖_* + ‖V V'ᵀ + outᵀ out'‖_* (nuclear norms, by Procrustes; traces
    where a map is not free), and the order is the assignment of the largest sum. Cost: H² SVDs of [d, d].
    """
    orders, qk, vo = {}, {}, {}
    for attention in (each for tower in towers for each in tower.attentions):
        if not (attention.maps_qk or attention.maps_vo):
            continue
        scores, values = _head_similarity(target, other, attention)
        worth = _worth(scores, free=attention.maps_qk) + _worth(values, free=attention.maps_vo)
        order = torch.from_numpy(assign(worth.numpy()))
        orders[attention.name] = order
        place = torch.arange(len(order))
        if attention.maps_qk:
            qk[attention.name] = procrustes(scores[place, order])
        if attention.maps_vo:
            vo[attention.name] = procrustes(values[place, order])
    return Turn(orders=orders, qk=qk, vo=vo)


def procrustes(similarity: Tensor) -> Tensor:
    """The orthogonal M of the largest ⟨M, S⟩: U Vᵀ of S = U Σ Vᵀ."""
    left, _, right = torch.linalg.svd(similarity)
    found: Tensor = left @ right
    return found


def _head_similarity(target: Tensors, other: Tensors, attention: Attention) -> tuple[Tensor, Tensor]:
    """S[i, j] = ⟨head i of the target, head j of the other⟩ as [H, H, d, d], of Q and K, and of V and out."""
    both = zip(heads(target, attention), heads(other, attention), strict=True)
    q, k, v, out = (torch.einsum("idx,jex->ijde", x, y) for x, y in both)
    return q + k, v + out


def _worth(similarity_hhdd: Tensor, *, free: bool) -> Tensor:
    if not free:
        return similarity_hhdd.diagonal(dim1=2, dim2=3).sum(-1)
    worth: Tensor = torch.linalg.svdvals(similarity_hhdd).sum(-1)
    return worth


def _directions(tensors: Tensors, stream: Stream) -> list[Tensor]:
    """Everything that lies on the stream, as [D, X]."""
    found = [matrix(tensors, layer) for layer in stream.writers]
    found += [tensors[layer.bias][:, None] for layer in stream.writers if layer.bias is not None]
    tables = (*stream.tables, *stream_shifts(tensors, stream))
    found += [tensors[name].reshape(-1, tensors[name].shape[-1]).T for name in tables]
    return found + [matrix(tensors, layer).T for layers in stream.readers.values() for layer in layers]


def _pair(spec: PermutationSpec, names: Sequence[str], target: Tensors, other: Tensors) -> Pair:
    first, second = ({name: each[name].float().contiguous() for name in names} for each in (target, other))
    return Pair(spec, first, second)


def _weights(tensors: Mapping[str, Tensor], towers: Sequence[Tower]) -> list[str]:
    """The floating tensors, without the gains that folding made 1."""
    streams = [tower.stream for tower in towers if tower.stream is not None]
    ones = {f"{norm}.weight" for stream in streams for norm in stream.readers}
    ones |= {name for stream in streams for name in stream.scales}
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and name not in ones]


def _cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: Sequence[str]) -> float:
    dot, first, second = (
        sum(float((x[name] * y[name]).sum()) for name in names) for x, y in ((a, b), (a, a), (b, b))
    )
    return float(dot / max((first * second) ** 0.5, 1e-300))
