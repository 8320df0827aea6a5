"""A file that is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from soupkit.whole import whole_file


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def write_half(path: Path, error: type[BaseException]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("sync", [False, True])
def test_it_appears_at_the_end_and_replaces_what_was_there(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with whole_file(path, sync=sync) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert (temporary.parent, temporary.suffix) == (path.parent, ".json")
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["scores.json"]


def test_a_folder_that_is_none_is_said_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), whole_file(tmp_path / "file" / "x") as temporary:
        temporary.write_text("")
