"""`PermutationSpec`: which axes of which tensors may be permuted together without changing what a network
computes.

Every axis of every tensor carries a small expression: how its positions are made of the units of groups. One
permutation per group then gives one gather per axis, and a network whose tensors are all gathered so computes
the same function (Entezari et al. 2022, arXiv:2110.06296; Ainsworth et al. 2023, arXiv:2209.04836, section
2).

A group of kind "blocks" permutes whole blocks (attention heads, groups of a convolution); the units inside
the block at place j are a group of their own, `inside` it at j, where the network allows it: together a
wreath product.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from soupkit.align.graph.expression import (
    Atom,
    AxisExpr,
    Blocks,
    Concat,
    Product,
    from_json,
    index_of,
    names_in,
    occurrences,
    pinned,
    sizes_in,
    to_json,
)
from soupkit.errors import AlignError
from soupkit.jsons import Json, JsonView

__all__ = [
    "Atom",
    "AxisExpr",
    "Blocks",
    "Concat",
    "Group",
    "Occurrence",
    "Permutation",
    "PermutationSpec",
    "Pinned",
    "Product",
]

Index = NDArray[np.int64]
Permutation = Mapping[str, Index]
"""group name → int64[size]; new[i] = old[permutation[i]]. A group that is not named stays as it is."""
FORMAT = 1


@dataclass(frozen=True)
class Group:
    """What is permuted together. inside: (group of blocks, place) whose units these are; family: all of its
    siblings.

    The groups of one family differ only in the place of the block that they are inside of.
    """

    name: str
    size: int
    kind: Literal["units", "blocks"] = "units"
    family: str = ""
    inside: tuple[str, int] | None = None


@dataclass(frozen=True)
class Pinned:
    """An axis, or a part of one, that must stay as it is, and why."""

    tensor: str
    axis: int
    reason: str


@dataclass(frozen=True)
class Occurrence:
    """Where a group appears: positions[u] are the places, along `axis` of `tensor`, of unit u (int64[size,
    m])."""

    tensor: str
    axis: int
    positions: Index


@dataclass(frozen=True)
class PermutationSpec:
    """The permutation groups of a network. Raises AlignError where groups and axes do not fit together.

    axes: for every tensor of the state dict (tied names included) one expression per axis.
    """

    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[AxisExpr, ...]]
    pinned: tuple[Pinned, ...] = ()
    notes: JsonView = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tensor, axes in self.axes.items():
            for number, axis in enumerate(axes):
                for name, size in sizes_in(axis):
                    if name not in self.groups or self.groups[name].size != size:
                        raise AlignError(f"{tensor} axis {number}: names {name!r}, no group of {size}")
        for group in self.groups.values():
            if group.inside is not None and group.inside[0] not in self.groups:
                raise AlignError(f"{group.name}: is inside {group.inside[0]!r}, which does not exist")

    def index(self, tensor: str, axis: int, permutation: Permutation) -> Index | None:
        """The gather along one axis: new = old.take(index, axis). None where nothing moves (unknown tensors
        too)."""
        axes = self.axes.get(tensor)
        if axes is None or not any(name in permutation for name in names_in(axes[axis])):
            return None
        index = index_of(axes[axis], permutation)
        return None if np.array_equal(index, np.arange(index.size)) else index

    def attached(self, group: str) -> list[tuple[str, int]]:
        """Every (tensor, axis) in which a group appears."""
        return list(self._attached.get(group, ()))

    def occurrences(self, group: str) -> list[Occurrence]:
        """Where each unit of a group lies. A group may occur several times along one axis.

        tensor.take(positions.ravel(), axis) laid out as (size, m) is what a similarity of units is made of.
        """
        return [
            Occurrence(tensor, axis, positions)
            for tensor, axis in self.attached(group)
            for positions in occurrences(self.axes[tensor][axis], group)
        ]

    def sibling(self, group: str, inside: tuple[str, int] | None) -> str:
        """The member of a group's family that is inside another block."""
        return self._families[(self.groups[group].family, inside)]

    def families(self) -> dict[str, list[str]]:
        """family → names of its groups, in order; a group of its own is a family of one."""
        found: dict[str, list[str]] = {}
        for group in self.groups.values():
            found.setdefault(group.family or group.name, []).append(group.name)
        return found

    def select(self, patterns: Iterable[str]) -> list[str]:
        """The groups that patterns name: a group, a family, or a tensor that groups are attached to; * and ?
        work.

        Raises AlignError for a pattern that names nothing.
        """
        chosen: dict[str, None] = {}
        for pattern in patterns:
            found = [
                name
                for name in self.groups
                if pattern in self._names_of(name) or self._matches(name, pattern)
            ]
            if not found:
                raise AlignError(
                    f"{pattern!r} names no group, family or permutable tensor",
                    hint="soupkit align groups MODEL lists them",
                )
            chosen |= dict.fromkeys(found)
        return list(chosen)

    def pin(self, names: Iterable[str], *, reason: str = "pinned by --pin") -> PermutationSpec:
        """The spec with some groups pinned (see `select`), each with its whole family, else blocks could not
        move.

        The units inside pinned blocks stay free, each inside its own block.
        """
        families = self.families()
        gone = {other for name in self.select(names) for other in families[self.groups[name].family or name]}
        axes = {tensor: tuple(pinned(axis, gone) for axis in axes) for tensor, axes in self.axes.items()}
        added = [Pinned(tensor, axis, reason) for tensor, axis in self._touched(gone)]
        return PermutationSpec(self._without(gone), axes, (*self.pinned, *added), self.notes)

    def to_json(self) -> Json:
        """The spec as JSON-able values."""
        return {
            "format": FORMAT,
            "groups": [
                {"name": g.name, "size": g.size, "kind": g.kind, "family": g.family, "inside": g.inside}
                for g in self.groups.values()
            ],
            "axes": {tensor: [to_json(axis) for axis in axes] for tensor, axes in self.axes.items()},
            "pinned": [[p.tensor, p.axis, p.reason] for p in self.pinned],
            "notes": dict(self.notes),
        }

    @classmethod
    def from_json(cls, values: JsonView) -> PermutationSpec:
        """Read what `to_json` wrote. Raises AlignError for anything else."""
        try:
            if values["format"] != FORMAT:
                raise AlignError(
                    f"permutation groups of format {values['format']!r}, this soupkit reads {FORMAT}"
                )
            return cls(
                groups={entry["name"]: _group(entry) for entry in values["groups"]},
                axes={
                    tensor: tuple(from_json(axis) for axis in axes) for tensor, axes in values["axes"].items()
                },
                pinned=tuple(Pinned(str(t), int(a), str(r)) for t, a, r in values["pinned"]),
                notes=dict(values.get("notes", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise AlignError(f"not permutation groups as soupkit exports them: {error!r}") from error

    @cached_property
    def _attached(self) -> dict[str, list[tuple[str, int]]]:
        found: dict[str, list[tuple[str, int]]] = {}
        for tensor, axes in self.axes.items():
            for number, axis in enumerate(axes):
                for name in names_in(axis):
                    found.setdefault(name, []).append((tensor, number))
        return found

    @cached_property
    def _families(self) -> dict[tuple[str, tuple[str, int] | None], str]:
        return {(group.family, group.inside): group.name for group in self.groups.values()}

    def _names_of(self, group: str) -> set[str]:
        return {group, self.groups[group].family, *(tensor for tensor, _ in self.attached(group))}

    def _matches(self, group: str, pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in self._names_of(group))

    def _touched(self, groups: set[str]) -> Iterator[tuple[str, int]]:
        for tensor, axes in self.axes.items():
            for number, axis in enumerate(axes):
                if groups & set(names_in(axis)):
                    yield tensor, number

    def _without(self, gone: set[str]) -> dict[str, Group]:
        """The remaining groups; the units of blocks that no longer move are families of their own."""
        kept = {name: group for name, group in self.groups.items() if name not in gone}
        return {
            name: Group(name, group.size, group.kind, name)
            if group.inside is not None and group.inside[0] in gone
            else group
            for name, group in kept.items()
        }


def _group(entry: JsonView) -> Group:
    inside = entry["inside"]
    if entry["kind"] not in ("units", "blocks"):
        raise ValueError(f"kind {entry['kind']!r}")
    place = (str(inside[0]), int(inside[1])) if inside is not None else None
    return Group(str(entry["name"]), int(entry["size"]), entry["kind"], str(entry["family"]), place)
