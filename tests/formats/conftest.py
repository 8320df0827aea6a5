"""Folders that torch itself wrote in 1, 2 and 4 processes: once for all tests, since that takes seconds."""

from pathlib import Path

import pytest
from distributed.ranks import in_ranks
from formats.sharded_work import write_all

SIZES = (1, 2, 4)


@pytest.fixture(scope="session", params=SIZES)
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of layouts, as so many processes left them."""
    folder = tmp_path_factory.mktemp(f"sharded-{request.param}")
    in_ranks(write_all, folder, request.param, size=request.param, folder=folder / "processes")
    return folder
