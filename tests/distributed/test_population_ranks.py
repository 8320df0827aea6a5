"""2 and 4 ranks train the population that one process trains: members spread over ranks, and ranks sharing a
member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed.population_work import make, result, train
from distributed.ranks import in_ranks

from soupkit.errors import RecipeError
from soupkit.events import silent
from soupkit.train.population.grid import Grid
from soupkit.train.population.state import find_state, load_state, save_state
from soupkit.world import World

ALONE = World("cpu", threads=1, rank=0, size=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """Each population trained by one process, and the state of one that stopped after 5 of 8 updates."""
    found: dict[str, Any] = {}
    for name in ("papa", "late", "pairs", "parts"):
        trained = make(name, ALONE)
        trained.train(silent)
        found[name] = result(trained)
    stopped = make("papa", ALONE)
    for member in stopped.members:
        member.begin()
    for _ in range(5):
        stopped._update(lambda members: [member.advance() for member in members])
    save_state(stopped, folder / "one", {})
    return found


def assert_equal_populations(found: list[Any], wanted: Any) -> None:
    """Every member is on some rank; weights and losses agree up to the order of sums."""
    members: dict[int, dict[str, np.ndarray]] = {}
    for own, losses in found:
        members |= own
        np.testing.assert_allclose(losses, wanted[1], rtol=1e-5)
    assert members.keys() == wanted[0].keys()
    for number, state in wanted[0].items():
        for name, values in state.items():
            np.testing.assert_allclose(members[number][name], values, rtol=2e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("size", "names"), [(2, ("papa", "pairs")), (4, ("late", "parts"))])
def test_ranks_equal_one_process(
    size: int, names: tuple[str, ...], alone: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    found = in_ranks(train, names, folder, size=size, folder=tmp_path / "processes")
    for name in names:
        assert_equal_populations([rank[name] for rank in found], alone[name])
    owners = [set(rank[names[0]][0]) for rank in found]
    assert sum(len(own) for own in owners) == 4  # four members, each on one rank
    assert_equal_populations([rank["continued"] for rank in found], alone["papa"])
    if "parts" in names:  # two members on four ranks: both ranks of a member end with the same bits
        for first, second in ((0, 1), (2, 3)):
            (a,), (b,) = (found[rank]["parts"][0].values() for rank in (first, second))
            assert all(np.array_equal(a[name], b[name]) for name in a)
    again = make("papa", ALONE)
    state = find_state(folder / f"ranks-{size}")
    assert state is not None
    load_state(again, state)
    again.train(silent)
    assert_equal_populations([result(again)], alone["papa"])


@pytest.mark.parametrize(
    ("size", "members", "ranks_per_member", "expected"),
    [(1, 5, 0, [(5, 1)]), (2, 5, 0, [(2, 1), (3, 1)]), (4, 2, 0, [(1, 2)] * 4), (4, 4, 2, [(2, 2)] * 4)],
)
def test_the_grid(
    size: int,
    members: int,
    ranks_per_member: int,
    expected: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Grid, "_join", lambda self: None)
    grids = [
        Grid(World("cpu", rank=rank, size=size), members, ranks_per_member=ranks_per_member)
        for rank in range(size)
    ]
    assert [(len(grid.members), grid.num_parts) for grid in grids] == expected[: len(grids)]
    leads = [number for grid in grids if grid.leads for number in grid.members]
    assert leads == list(range(members))


@pytest.mark.parametrize(("size", "members", "ranks_per_member"), [(3, 2, 2), (5, 2, 0), (4, 3, 1)])
def test_a_grid_that_does_not_fit_is_refused(size: int, members: int, ranks_per_member: int) -> None:
    with pytest.raises(RecipeError, match=f"{size} ranks cannot share {members} members"):
        Grid(World("cpu", rank=0, size=size), members, ranks_per_member=ranks_per_member)
