"""Points over ranks, against one process."""

from __future__ import annotations

from pathlib import Path

from curve.conftest import ALONE, few
from curve.point_ranks import chain_in_rank
from distributed.ranks import in_ranks

from soupkit.events import silent
from soupkit.jobs.curves.chain import chain
from soupkit.recipe.curve import Chain


def test_ranks_share_the_points_and_all_know_the_result(ends: tuple[str, str], tmp_path: Path) -> None:
    options = few(num_points=4, train=False, jobs=1)
    found = in_ranks(
        chain_in_rank, ends, tmp_path / "ranks", tmp_path, options, size=2, folder=tmp_path / "processes"
    )
    expected = chain(Chain(refs=ends, out=tmp_path / "one", **options), ALONE, silent)["metrics"]
    assert [metrics for metrics, _ in found] == [expected, expected]
    assert [num for _, num in found] == [2, 2]
    assert {path.name for path in (tmp_path / "ranks").iterdir()} == {
        "curve.npz",
        "curve.json",
        "curve.png",
        "soupkit.json",
    }
