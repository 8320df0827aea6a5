"""Permutations of the groups of a spec: identity, random ones, composition, inverse.

The units inside blocks travel with their blocks, so permutations compose as a wreath product does: with b the
permutation of the blocks and t_j that of the units at place j, (first, then) gives b = b¹∘b² and t_j =
t¹_{b²(j)}∘t²_j.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from soupkit.align.spec import Index, Permutation, PermutationSpec
from soupkit.errors import AlignError


def identity(spec: PermutationSpec) -> dict[str, Index]:
    """Every group as it is."""
    return {name: np.arange(group.size, dtype=np.int64) for name, group in spec.groups.items()}


def random_permutation(
    spec: PermutationSpec, seed: int, *, groups: Iterable[str] | None = None
) -> dict[str, Index]:
    """One random permutation per group, uniform over all of them; `groups`: of these only."""
    generator = np.random.default_rng(seed)
    drawn = {name: generator.permutation(group.size).astype(np.int64) for name, group in spec.groups.items()}
    return drawn if groups is None else {name: drawn[name] for name in groups}


def compose(first: Permutation, then: Permutation, *, spec: PermutationSpec) -> dict[str, Index]:
    """The permutation that does `first` and then `then` to the result: applying it once equals applying
    both."""
    first, then = {**identity(spec), **first}, {**identity(spec), **then}
    return {name: first[source(name, then, spec=spec)][then[name]] for name in spec.groups}


def inverse(permutation: Permutation, spec: PermutationSpec) -> dict[str, Index]:
    """The permutation that undoes another one."""
    full = {**identity(spec), **permutation}
    return {source(name, full, spec=spec): np.argsort(full[name]) for name in spec.groups}


def source(name: str, permutation: Permutation, *, spec: PermutationSpec) -> str:
    """The group whose units a permutation brings to the place of `name`: its sibling in the block that moves
    there."""
    inside = spec.groups[name].inside
    if inside is None:
        return name
    blocks, place = inside
    moved = permutation.get(blocks)
    old = int(moved[place]) if moved is not None else place
    return spec.sibling(name, (source(blocks, permutation, spec=spec), old))


def count_changed(permutation: Permutation) -> int:
    """How many groups a permutation moves."""
    return sum(not np.array_equal(index, np.arange(len(index))) for index in permutation.values())


def check_permutation(permutation: Permutation, spec: PermutationSpec) -> None:
    """Raise AlignError unless every entry is a permutation of a group of the spec."""
    for name, index in permutation.items():
        if name not in spec.groups:
            raise AlignError(f"{name!r} is no group of this network")
        size = spec.groups[name].size
        if len(index) != size or not np.array_equal(np.sort(index), np.arange(size)):
            raise AlignError(f"{name}: not a permutation of {size} units")
