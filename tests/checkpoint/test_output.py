"""An output exists whole or not at all, and never at the cost of something else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soupkit.checkpoint.output import OutputDirectory, check_output, journal_path, temporary_sibling
from soupkit.checkpoint.tensors import parse_bytes, write_tensors
from soupkit.errors import OutputError, RecipeError

Save = Callable[..., Path]


def litter(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_directory_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with OutputDirectory(out) as directory:
        (directory / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert litter(out.parent) == []


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="none: No such file"), OutputDirectory(out) as directory:
        shutil.copytree(directory / "none", directory / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        OutputDirectory(out)
    with pytest.raises(OutputError, match="was not written by soupkit"):
        OutputDirectory(out, overwrite=True)
    assert (out / "precious").read_text() == "mine"


def test_overwrite_replaces_an_output_of_soupkit_in_one_step(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for content in ("old", "new"):
        with OutputDirectory(out, overwrite=True) as directory:
            (directory / "soupkit.json").write_text(content)
            (directory / content).touch()
    assert sorted(path.name for path in out.iterdir()) == ["new", "soupkit.json"]
    assert litter(tmp_path) == []


def test_a_failed_overwrite_keeps_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with OutputDirectory(out) as directory:
        (directory / "soupkit.json").write_text("old")
    with pytest.raises(RuntimeError), OutputDirectory(out, overwrite=True) as directory:
        raise RuntimeError
    assert (out / "soupkit.json").read_text() == "old"


def test_an_input_is_never_the_output(save: Save, tmp_path: Path) -> None:
    model = save("models/a", {"w": np.zeros(3, np.float32)}) / "model.safetensors"
    for out in (tmp_path / "models/a", tmp_path / "models"):
        with pytest.raises(OutputError, match="also an input"):
            check_output(out, overwrite=True, inputs=[model])
    (tmp_path / "link").symlink_to(tmp_path / "models")
    with pytest.raises(OutputError, match="also an input"):
        check_output(tmp_path / "link/a", overwrite=True, inputs=[model])


def test_a_disk_that_is_too_small_is_noticed_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="GB free"):
        check_output(tmp_path / "out", num_bytes=shutil.disk_usage(tmp_path).free + 1)


def test_a_full_disk_during_the_work_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="No space left"), OutputDirectory(tmp_path / "out") as directory:
        write_tensors(directory, {"a": np.zeros(10, np.float32)})
    assert list(tmp_path.iterdir()) == []


def test_litter_of_the_dead_is_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    dead = tmp_path / ".out.soupkit-1-dead"
    dead.mkdir()
    with temporary_sibling(tmp_path / "out") as living:
        assert not dead.exists()
        with OutputDirectory(tmp_path / "out") as directory:
            (directory / "a").touch()
        assert living.exists()


@pytest.mark.parametrize(("age", "kept"), [(-1, False), (1, True)])
def test_the_journal_of_a_search_that_ended_is_removed(age: int, kept: bool, tmp_path: Path) -> None:
    """A kill between the output and the end of its journal; a younger one belongs to a search with
    --overwrite."""
    out = tmp_path / "soup"
    with OutputDirectory(out) as directory:
        (directory / "soupkit.json").write_text("{}")
    published, journal = (out / "soupkit.json").stat().st_mtime_ns, journal_path(out)
    journal.write_bytes(b"state")
    os.utime(journal, ns=(published + age, published + age))
    with pytest.raises(OutputError, match="exists already"):
        check_output(out)
    assert journal.exists() is kept


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        OutputDirectory(tmp_path / "out")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        OutputDirectory(tmp_path / "out")


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with OutputDirectory(tmp_path / "out") as directory:
            write_tensors(directory, {"a": np.zeros(10, np.float32)})
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o777 == 0o640


def test_sizes_are_read() -> None:
    assert [parse_bytes(text) for text in ("5GB", "8 GiB", "1.5MB", "12")] == [
        5 * 10**9,
        8 * 2**30,
        1_500_000,
        12,
    ]
    for text in ("", "5 parsecs", "-1GB", "0"):
        with pytest.raises(RecipeError):
            parse_bytes(text)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that even root cannot write")
def test_a_file_system_that_refuses_is_reported() -> None:
    with (
        pytest.raises(OutputError, match=r"cannot be written|not writable"),
        OutputDirectory(Path("/proc/soup")),
    ):
        pytest.fail("must not get here")
