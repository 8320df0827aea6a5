"""Networks of many operations: their groups keep the function, by brute force, and are as free as they should
be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from align.networks import HEADS, C, Network, Residual, change, images, prepared, random_network, tokens
from torch import nn

from soupkit.align.graph.trace import permutation_spec
from soupkit.align.permutation import random_permutation
from soupkit.align.spec import PermutationSpec

INPUTS = (torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)
NUM_STACKS = 15
D = C // HEADS


def check(network: nn.Module, names: object) -> PermutationSpec:
    """All groups at once, three times; no operation without a rule."""
    model = prepared(network)
    spec = permutation_spec(model, INPUTS)
    assert not spec.notes["gave_up"], names
    for seed in range(3):
        error = change(model, spec, random_permutation(spec, seed), INPUTS)
        assert error < 1e-10, f"{names}: {error}"
    return spec


@pytest.mark.parametrize("number", range(NUM_STACKS))
def test_every_piece_in_random_company(number: int) -> None:
    """The pieces are dealt out: each is in one of the networks, every other one beside a skip connection."""
    torch.manual_seed(number)
    chosen = []
    for pieces in (images(), tokens()):
        order = np.random.default_rng(0).permutation(len(pieces))
        dealt = [list(pieces.items())[place] for place in order[number::NUM_STACKS]]
        chosen.append(
            {name: Residual(piece()) if k % 2 else piece() for k, (name, piece) in enumerate(dealt)}
        )
    check(
        Network(*(list(pieces.values()) for pieces in chosen), twice=number % 3 == 0),
        [list(p) for p in chosen],
    )


@pytest.mark.parametrize("seed", [1, 3])
def test_random_networks(seed: int) -> None:
    check(*random_network(seed))


S = (1, C)  # a stream of C channels
H, U = (1, HEADS), (HEADS, D)  # heads; units inside each of them
EXPECTED = {
    "conv": [S, S],
    "strided bottleneck": [S, S, (1, 6), (1, 6)],
    "grouped": [S, S, (1, 3), (1, C // 3), (3, C // 3)],  # groups; units that all share; units of each
    "group norm": [S, S, (1, 3), (3, C // 3)],
    "group norm of the stream": [(1, 4), (4, C // 4)],
    "depthwise": [S, S, (1, 2 * C)],
    "depthwise, twice as wide": [S, S, (C, 2)],
    "gate": [S, (1, 4)],
    "glu": [S, S, S],
    "cat": [S, S, (1, 5)],
    "chunks": [S, S, (1, C // 3), (1, C // 3)],
    "weight standardised": [S, S],
    "shuffle": [S, S, (1, 3), (1, C // 3)],
    "attention 3hd": [S, S, H, U, U],  # units of Q and K, units of V
    "attention h3d": [S, S, H, U, U],
    "attention h(3d)": [S, S, H, U, U],
    "attention split": [S, S, H, U, U],
    "multi-head": [S, S, H, U, U],
    "attention 3hd norm plain": [S, S, H, (1, D), U],  # one norm for Q and K of all heads
    "attention 3hd rope": [S, S, H, U],  # Q and K stay, V does not
    "attention grouped": [S, S, H, (1, D), (1, D)],  # three query heads share one of keys and values
    "channel attention": [S, H, U, U],
    "talking heads": [S, H, U, H, U],
    "swiglu": [S, S, (1, 10)],
    "token mixer": [S, (1, 7), (1, 16)],
    "softmax over heads": [S, H, (1, D)],
    "norm per head": [S, H, (1, D)],
    "first head apart": [S, (1, D)],
    "sorted": [S],
    "cumulated": [S],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_free(name: str) -> None:
    """(number of groups, size) of every family."""
    torch.manual_seed(0)
    if name in images():
        network = Network([images()[name]()], [nn.Identity()])
    else:
        network = Network([nn.Identity()], [tokens()[name]()])
    spec = check(network, name)
    found = [(len(groups), spec.groups[groups[0]].size) for groups in spec.families().values()]
    assert sorted(found) == sorted(EXPECTED[name])
