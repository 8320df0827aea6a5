"""Groups and axes as values: JSON, pins, places of units, composition and inverse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from soupkit.align.graph.expression import index_of
from soupkit.align.permutation import (
    check_permutation,
    compose,
    count_changed,
    identity,
    inverse,
    random_permutation,
)
from soupkit.align.spec import Atom, Blocks, Concat, Group, PermutationSpec, Pinned, Product
from soupkit.errors import AlignError


def wreath() -> PermutationSpec:
    """Two kinds of blocks inside each other, units inside, beside a plain group and pinned positions."""
    groups = {"outer": Group("outer", 2, "blocks", "outer"), "plain": Group("plain", 3, "units", "plain")}
    parts = []
    for i in range(2):
        heads = f"heads[{i}]"
        groups[heads] = Group(heads, 3, "blocks", "heads", ("outer", i))
        for j in range(3):
            groups[f"units[{i}][{j}]"] = Group(f"units[{i}][{j}]", 4, "units", "units", (heads, j))
        parts.append(Blocks(heads, tuple(Atom(f"units[{i}][{j}]", 4) for j in range(3))))
    row = Blocks("outer", tuple(parts))
    column = Concat((Product((Atom("plain", 3), Atom(None, 2))), Atom("plain", 3)))
    return PermutationSpec(
        groups, {"weight": (row, column), "bias": (row,)}, (Pinned("weight", 1, "a test"),)
    )


def index(spec: PermutationSpec, tensor: str, axis: int, permutation: dict[str, np.ndarray]) -> np.ndarray:
    return index_of(spec.axes[tensor][axis], permutation)


def test_blocks_move_first_and_then_the_units_at_each_place() -> None:
    axis = Blocks("heads", (Atom("a", 3), Atom("b", 3)))
    moved = index_of(axis, {"heads": np.array([1, 0]), "a": np.array([2, 1, 0]), "b": np.array([1, 2, 0])})
    assert moved.tolist() == [5, 4, 3, 1, 2, 0]


def test_products_are_row_major_and_concatenations_in_order() -> None:
    axis = Concat((Product((Atom("a", 2), Atom("b", 3))), Atom(None, 2)))
    moved = index_of(axis, {"a": np.array([1, 0]), "b": np.array([2, 0, 1])})
    assert moved.tolist() == [5, 3, 4, 2, 0, 1, 6, 7]


@pytest.mark.parametrize("seed", range(8))
def test_composition_and_inverse_act_as_they_should(seed: int) -> None:
    spec = wreath()
    first, then = random_permutation(spec, seed), random_permutation(spec, seed + 50)
    both, undone = compose(first, then, spec=spec), compose(first, inverse(first, spec), spec=spec)
    check_permutation(both, spec)
    tensor = np.random.default_rng(seed).normal(size=(24, 9))

    def apply(values: np.ndarray, permutation: dict[str, np.ndarray]) -> np.ndarray:
        rows, columns = (index(spec, "weight", axis, permutation) for axis in range(2))
        return values[rows][:, columns]

    assert np.array_equal(apply(apply(tensor, first), then), apply(tensor, both))
    assert count_changed(undone) == 0
    assert count_changed(first) > 0
    assert np.array_equal(apply(apply(tensor, first), inverse(first, spec)), tensor)


def test_a_permutation_of_some_groups_leaves_the_others() -> None:
    spec = wreath()
    only = {"plain": np.array([2, 0, 1])}
    assert spec.index("weight", 0, only) is None
    assert spec.index("weight", 1, only).tolist() == [4, 5, 0, 1, 2, 3, 8, 6, 7]
    assert spec.index("weight", 1, identity(spec)) is None
    assert spec.index("no such tensor", 0, only) is None
    assert np.array_equal(compose({}, only, spec=spec)["plain"], only["plain"])


def test_occurrences_are_where_a_gather_moves_units_to() -> None:
    spec = wreath()
    for name, group in spec.groups.items():
        permutation = random_permutation(spec, 3, groups=[name])
        for tensor, axis in spec.attached(name):
            expected = np.arange(spec.axes[tensor][axis].size)
            for found in spec.occurrences(name):
                if (found.tensor, found.axis) == (tensor, axis):
                    assert found.positions.shape[0] == group.size
                    expected[found.positions] = found.positions[permutation[name]]
            assert np.array_equal(index(spec, tensor, axis, permutation), expected)
    assert len(spec.occurrences("plain")) == 2


def test_json_round_trip() -> None:
    spec = wreath()
    assert PermutationSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(format=2),
        lambda v: v.pop("groups"),
        lambda v: v["groups"].pop(),
        lambda v: v["groups"][0].update(kind="other"),
        lambda v: v["axes"].update(more=[{"group": "unknown", "size": 3}]),
        lambda v: v["axes"].update(more=[{"group": "plain", "size": 4}]),
        lambda v: v["axes"].update(more=[{"blocks": "outer", "parts": [{"group": None, "size": 3}]}]),
        lambda v: v["axes"].update(more=[{"size": 3}]),
        lambda v: v["axes"].update(more=[3]),
        lambda v: v["groups"].append(
            {"name": "x", "size": 2, "kind": "units", "family": "x", "inside": ["no", 0]}
        ),
    ],
)
def test_json_that_is_no_spec_is_refused(change: object) -> None:
    values = json.loads(json.dumps(wreath().to_json()))
    change(values)  # type: ignore[operator]
    with pytest.raises(AlignError):
        PermutationSpec.from_json(values)


def test_pinning_one_group_inside_blocks_pins_its_whole_family() -> None:
    spec = wreath().pin(["units[0][1]"], reason="mine")
    assert set(spec.groups) == {"outer", "plain", "heads[0]", "heads[1]"}
    assert Pinned("bias", 0, "mine") in spec.pinned
    first, then = random_permutation(spec, 0), random_permutation(spec, 1)
    both = index(spec, "bias", 0, compose(first, then, spec=spec))
    assert np.array_equal(both, index(spec, "bias", 0, first)[index(spec, "bias", 0, then)])


def test_pinned_blocks_leave_their_units_free() -> None:
    spec = wreath().pin(["outer"])
    assert "outer" not in spec.groups
    assert spec.groups["heads[1]"].inside is None
    assert spec.groups["units[1][2]"].inside == ("heads[1]", 2)
    for seed in range(4):
        first, then = random_permutation(spec, seed), random_permutation(spec, seed + 9)
        both = index(spec, "bias", 0, compose(first, then, spec=spec))
        assert np.array_equal(both, index(spec, "bias", 0, first)[index(spec, "bias", 0, then)])
        assert set(both[:12]) == set(range(12))


@pytest.mark.parametrize(
    ("pattern", "number"),
    [("plain", 1), ("units", 6), ("heads*", 2), ("bias", 9), ("*", 10), ("units[[]0]*", 3)],
)
def test_groups_are_named_by_name_family_tensor_or_pattern(pattern: str, number: int) -> None:
    assert len(wreath().select([pattern])) == number


def test_a_pattern_that_names_nothing_is_refused() -> None:
    with pytest.raises(AlignError, match="'nothing' names no group"):
        wreath().pin(["plain", "nothing"])


@pytest.mark.parametrize(
    "wrong", [{"plain": [0, 1]}, {"plain": [0, 1, 1]}, {"plain": [1, 2, 3]}, {"other": [0]}]
)
def test_what_is_no_permutation_is_refused(wrong: dict[str, list[int]]) -> None:
    with pytest.raises(AlignError):
        check_permutation({name: np.array(index) for name, index in wrong.items()}, wreath())
