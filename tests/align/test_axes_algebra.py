"""Laws of the axis algebra, on random expressions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soupkit.align.graph.axes import (
    Node,
    Plus,
    Symbol,
    Times,
    Varying,
    at,
    pin,
    plus,
    resolve,
    size,
    symbols,
    times,
    varying,
)
from soupkit.align.graph.groups import build_spec
from soupkit.align.graph.unify import cut, share, split, unify
from soupkit.align.permutation import compose, inverse, random_permutation
from soupkit.align.spec import PermutationSpec

SIZES = (4, 6, 8, 12, 24)


def random_node(length: int, draw: np.random.Generator, depth: int = 2) -> Node:
    """A closed expression of a given size: symbols, pinned ones, products, concatenations, blocks with units
    inside."""
    divisors = [d for d in range(2, length) if length % d == 0]
    kinds = (
        ["symbol"] * 2
        + ["pinned"]
        + (["times", "blocks"] if divisors else [])
        + (["plus"] if length > 2 else [])
    )
    kind = kinds[draw.integers(len(kinds))] if depth else "symbol"
    if kind == "symbol":
        return Symbol(length)
    if kind == "pinned":
        return Symbol(length, "a test")
    if kind == "plus":
        first = int(draw.integers(1, length))
        return plus(random_node(first, draw, depth - 1), random_node(length - first, draw, depth - 1))
    num = divisors[draw.integers(len(divisors))]
    if kind == "times":
        return times(random_node(num, draw, depth - 1), random_node(length // num, draw, depth - 1))
    blocks = Symbol(num)
    return times(blocks, varying(blocks, tuple(Symbol(length // num) for _ in range(num))))


def freedom(*nodes: Node) -> PermutationSpec:
    return build_spec({f"x{number}": (node,) for number, node in enumerate(nodes)})


def index(spec: PermutationSpec, name: str, seed: int) -> np.ndarray:
    found = spec.index(name, 0, random_permutation(spec, seed))
    return np.arange(spec.axes[name][0].size) if found is None else found


pairs = st.tuples(st.sampled_from(SIZES), st.integers(0, 2**32))


@given(pairs)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_unified_moves_alike_and_keeps_its_size(case: tuple[int, int]) -> None:
    length, seed = case
    draw = np.random.default_rng(seed)
    x, y = random_node(length, draw), random_node(length, draw)
    unify(x, y)
    assert size(resolve(x)) == size(resolve(y)) == length
    spec = freedom(x, y)
    for number in range(3):
        moved = index(spec, "x0", number)
        assert np.array_equal(np.sort(moved), np.arange(length))
        assert np.array_equal(moved, index(spec, "x1", number))


@given(pairs)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_unify_is_symmetric(case: tuple[int, int]) -> None:
    length, seed = case
    found = []
    for turn in (False, True):
        draw = np.random.default_rng(seed)
        x, y = random_node(length, draw), random_node(length, draw)
        unify(*((y, x) if turn else (x, y)))
        found.append(
            sorted((group.size, group.inside is not None) for group in freedom(x, y).groups.values())
        )
    assert found[0] == found[1]


@given(pairs)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_split_and_cut_name_the_same_positions(case: tuple[int, int]) -> None:
    length, seed = case
    draw = np.random.default_rng(seed)
    x = random_node(length, draw)
    num = int(draw.choice([d for d in range(1, length + 1) if length % d == 0]))
    blocks, inside = split(x, num)
    assert (size(blocks), size(inside)) == (num, length // num)
    bounds = [0, *sorted({int(n) for n in draw.integers(1, length, 2)}), length]
    parts = [cut(x, start, stop) for start, stop in pairwise(bounds)]
    spec = freedom(x, times(blocks, inside), plus(*parts))
    for number in range(3):
        assert np.array_equal(index(spec, "x0", number), index(spec, "x1", number))
        assert np.array_equal(index(spec, "x0", number), index(spec, "x2", number))


@given(pairs)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_permutations_of_random_axes_form_a_group(case: tuple[int, int]) -> None:
    length, seed = case
    draw = np.random.default_rng(seed)
    spec = freedom(random_node(length, draw, 3), random_node(length, draw, 3))
    first, then = random_permutation(spec, seed), random_permutation(spec, seed + 1)
    both = compose(first, then, spec=spec)
    for name in spec.axes:
        one, two = (spec.index(name, 0, p) if p else None for p in (first, then))
        one, two = (np.arange(length) if found is None else found for found in (one, two))
        composed = spec.index(name, 0, both)
        assert np.array_equal(np.arange(length) if composed is None else composed, one[two])
        assert spec.index(name, 0, compose(first, inverse(first, spec), spec=spec)) is None
        assert spec.index(name, 0, compose(inverse(first, spec), first, spec=spec)) is None


def test_heads_and_their_units_are_free_apart_from_each_other() -> None:
    qkv = Symbol(3 * 4 * 5)
    kinds, rest = split(qkv, 3)
    heads, units = split(rest, 4)
    pin(kinds, "chosen by place")
    q, k, v = ((at(heads, kinds, place), at(units, kinds, place)) for place in range(3))
    for other in (k, v):
        unify(q[0], other[0])
    unify(q[1], k[1])
    out = Symbol(20)
    unify(times(*v), out)
    spec = freedom(qkv, out)
    sizes = sorted((len(groups), spec.groups[groups[0]].size) for groups in spec.families().values())
    assert sizes == [(1, 4), (4, 5), (4, 5)]  # heads; units of Q and K inside each; units of V inside each
    assert {group.kind for group in spec.groups.values() if group.size == 4} == {"blocks"}


def test_shared_units_no_longer_vary() -> None:
    blocks, units = split(Symbol(12), 3)
    assert isinstance(resolve(units), Varying)
    assert isinstance(blocks, Symbol)
    share(units, blocks)
    assert isinstance(resolve(units), Symbol)


def test_blocks_at_fixed_places_are_a_concatenation() -> None:
    x = Symbol(12)
    blocks, _ = split(x, 3)
    assert isinstance(resolve(x), Times)
    pin(blocks, "a test")
    found = resolve(x)
    assert isinstance(found, Plus)
    assert [size(part) for part in found.parts] == [4, 4, 4]
    assert len(set(found.parts)) == 3


def test_a_symbol_inside_itself_is_pinned() -> None:
    x = Symbol(6)
    unify(plus(x, Symbol(6)), plus(Symbol(3), x, Symbol(3)))
    spec = freedom(x)
    assert all(np.array_equal(index(spec, "x0", seed), np.arange(6)) or spec.groups for seed in range(3))
    unify(plus(cut(x, 3, 6), cut(x, 0, 3)), x)  # x is its own rotation: constant halves only
    spec = freedom(x)
    for seed in range(5):
        moved = index(spec, "x0", seed)
        assert np.array_equal(moved[3:], moved[:3] + 3)


def test_sizes_that_differ_are_pinned() -> None:
    x, y = Symbol(3), Symbol(4)
    unify(x, y)
    assert all(symbol.reason for node in (x, y) for symbol in symbols(node))


def test_positions_that_do_not_divide_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="7 positions"):
        split(Symbol(7), 2)


def test_blocks_that_differ_inside_do_not_move() -> None:
    x = Symbol(6)
    blocks, units = split(x, 2)
    pin(at(units, blocks, 0), "only here")
    spec = freedom(x)
    assert [group.size for group in spec.groups.values()] == [3]
    moved = index(spec, "x0", 0)
    assert np.array_equal(moved[:3], np.arange(3))
