"""Alignment and REPAIR of a population in training: of models in memory, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from soupkit.align.matching.match import Match
from soupkit.align.matching.similarity import objective_names, permuted
from soupkit.align.matching.universe import align_all
from soupkit.align.moments import Batches
from soupkit.align.repair import Kind, measure_endpoints, repair
from soupkit.align.spec import PermutationSpec
from soupkit.checkpoint.dtypes import Array
from soupkit.task.task import Task
from soupkit.task.weights import to_numpy

Named = Mapping[str, Tensor]


def align_members(members: Sequence[Named], spec: PermutationSpec, *, seed: int = 0) -> list[Match]:
    """Permute every member, in place, to match the first and then one another; returns what was found.

    Every tensor of the spec is permuted, batch-norm statistics with the rest. What an optimizer keeps of a
    weight is not: a caller that goes on with it permutes that likewise. Memory and cost: see
    `matching.universe.align_all`.
    """
    names = objective_names(spec, members[0])
    models = [{name: member[name].detach().float().contiguous() for name in names} for member in members]
    found = align_all(spec, models, to=0, seed=seed)
    with torch.no_grad():
        for member, match in zip(members, found.matches, strict=True):
            for name in set(spec.axes) & set(member) if match.num_changed else ():
                member[name].copy_(permuted(member[name], spec, name, match.permutation))
    return found.matches


def repair_members(
    children: Sequence[Named],
    parents: Sequence[Named],
    coefficients: np.ndarray,
    task: Task,
    *,
    kind: Kind,
    batches: Callable[[], Batches],
) -> None:
    """REPAIR every child, in place: row i of coefficients says of which parents it is the mean; see `repair`.

    task: its model has the named tensors as its state; it is used to run them and left with the last child's.
    """
    endpoints = measure_endpoints(task, [_arrays(parent) for parent in parents], kind=kind, batches=batches)
    for child, row in zip(children, coefficients, strict=True):
        task.load(_arrays(child))
        result = repair(task, endpoints, row.tolist(), kind=kind, batches=batches)
        state = task.model.state_dict()
        with torch.no_grad():
            for name in result.changed:
                child[name].copy_(state[name])


def _arrays(state: Named) -> dict[str, Array]:
    return {name: to_numpy(tensor) for name, tensor in state.items()}
