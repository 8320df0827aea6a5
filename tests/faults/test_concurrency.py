"""Several processes and one directory: what is refused, and that nothing is ever mixed."""

import itertools
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import wait_for

from soupkit.checkpoint import output
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.layout import find_weights
from soupkit.checkpoint.output import OutputDirectory, remove_litter, temporary_sibling
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, OutputError, SoupkitError
from soupkit.manifest import Manifest

Save = Callable[..., Path]
SHARD = 20_000


def weights(value: int) -> dict[str, Any]:
    """Every number is `value`, so a mixture of two checkpoints shows."""
    return {f"layer{i}": np.full((50, 50), value, np.float32) for i in range(12)}


@pytest.fixture
def two(save: Save) -> list[Path]:
    return [save(f"source{value}", weights(value), max_shard_bytes=SHARD) for value in (0, 1)]


def merge_command(out: Path, *sources: Path, options: tuple[str, ...] = ()) -> list[str]:
    shards = ("--max-shard-size", f"{SHARD}B", "--quiet", *options)
    return ["merge", "uniform", *map(str, sources), "--out", str(out), *shards]


def litter(out: Path) -> list[Path]:
    return [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}.")]


def whole(directory: Path) -> float:
    """The one value that a checkpoint holds everywhere; asserts that it is one."""
    opened = open_checkpoint(str(directory))
    values = {float(value) for name in opened for value in np.unique(opened[name])}
    assert len(values) == 1, f"a mixture of {values}"
    return values.pop()


def test_merges_into_one_output_at_once(two: list[Path], tmp_path: Path) -> None:
    """One wins, the others are told why they did not."""
    commands = [merge_command(tmp_path / "out", two[number % 2]) for number in range(3)]
    processes = [
        subprocess.Popen([sys.executable, "-m", "soupkit", *command], stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    outcomes = [(process.communicate()[1], process.returncode) for process in processes]
    assert sorted(code for _, code in outcomes) == [0, 1, 1], outcomes
    assert all("exists already" in text for text, code in outcomes if code)
    assert whole(tmp_path / "out") in (0.0, 1.0)
    assert not litter(tmp_path / "out")


def _merge(command: list[str], barrier: Any) -> None:
    barrier.wait()
    sys.exit(run_command_line(command))


def test_merges_that_overwrite_at_once(two: list[Path], tmp_path: Path) -> None:
    """All succeed, the last stays, and the manifest is of the same merge as the weights."""
    commands = [
        merge_command(tmp_path / "out", two[number % 2], options=("--overwrite",)) for number in range(4)
    ]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(commands))
    processes = [context.Process(target=_merge, args=(command, barrier)) for command in commands]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert whole(tmp_path / "out") in (0.0, 1.0)
    assert content_hash(Checkpoint(tmp_path / "out")) == Manifest.read(tmp_path / "out").outputs["content"]
    assert not litter(tmp_path / "out")


def _publish(out: Path, value: int, rounds: int, barrier: Any, failures: Any) -> None:
    try:
        barrier.wait()
        for _ in range(rounds):
            with OutputDirectory(out, overwrite=True) as directory:
                for name in ("a", "b", "c"):
                    (directory / name).write_text(str(value))
                Manifest(command="test", recipe={}).write(directory)
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_publishing_over_and_over_from_several_processes(tmp_path: Path) -> None:
    """The window in which a new temporary directory looks like litter is short; this goes through it
    often."""
    context = multiprocessing.get_context("fork")
    barrier, failures, out = context.Barrier(4), context.Queue(), tmp_path / "out"
    processes = [
        context.Process(target=_publish, args=(out, value, 40, barrier, failures)) for value in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty(), failures.get()
    assert len({(out / name).read_text() for name in ("a", "b", "c")}) == 1
    assert not litter(out)


def test_a_directory_that_is_taken_for_litter_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process comes between mkdtemp and the lock."""
    made = []
    mkdtemp = output.tempfile.mkdtemp

    def robbed(**options: Any) -> str:
        path = mkdtemp(**options)
        made.append(path)
        if len(made) == 1:
            remove_litter(tmp_path / "out")
        return path

    monkeypatch.setattr(output.tempfile, "mkdtemp", robbed)
    with temporary_sibling(tmp_path / "out") as directory:
        assert directory.is_dir()
        assert len(made) == 2
        remove_litter(tmp_path / "out")
        assert directory.is_dir()
    assert not litter(tmp_path / "out")


def test_another_writer_comes_first(tmp_path: Path) -> None:
    """Between the check and the rename."""

    def second() -> None:
        with OutputDirectory(tmp_path / "out") as directory:
            (directory / "file").write_text("second")
            (tmp_path / "out").mkdir()
            (tmp_path / "out/file").write_text("first")

    with pytest.raises(OutputError, match="exists already"):
        second()
    assert (tmp_path / "out/file").read_text() == "first"
    assert not litter(tmp_path / "out")


@pytest.fixture
def writer(two: list[Path], tmp_path: Path) -> Iterator[Path]:
    """An output that is replaced all the time, in this process's own threads."""
    from soupkit.events import silent
    from soupkit.jobs.merge.uniform import merge_uniform
    from soupkit.recipe.merge import MergeUniform
    from soupkit.world import World

    out, end, failures = tmp_path / "out", threading.Event(), []

    def write() -> None:
        number = 0
        while not end.is_set():
            recipe = MergeUniform(
                refs=(str(two[number % 2]),), out=out, overwrite=True, max_shard_size=f"{SHARD}B", threads=1
            )
            try:
                merge_uniform(recipe, World(threads=1), silent)
            except SoupkitError as error:
                failures.append(error)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    wait_for(out.exists)
    yield out
    end.set()
    thread.join()
    assert not failures


def test_readers_during_writes_see_one_checkpoint_or_an_error(writer: Path) -> None:
    """Never shards of two, never new bytes under old headers."""
    seen, refused = set(), []
    for count in itertools.count():
        if seen == {0.0, 1.0} and count >= 300:  # both, however seldom a busy machine lets the writer run
            break
        try:
            seen.add(whole(writer))
        except CheckpointError as error:
            refused.append(error.message)
    assert all("was replaced, changed or removed" in message for message in refused)


def test_a_directory_that_is_exchanged_while_it_is_listed_is_listed_again(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, new = save("out", weights(0)), save("new", weights(1))
    listed = Path.iterdir
    calls = []

    def exchanged(path: Path) -> Iterator[Path]:
        calls.append(path)
        if len(calls) == 1:  # the writer's exchange: the old one is emptied under the reader
            out.rename(tmp_path / "old")
            new.rename(out)
            return iter(())
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", exchanged)
    assert find_weights(out) == out / "model.safetensors"
    assert len(calls) == 2


def test_a_replaced_file_is_noticed(save: Save, tmp_path: Path) -> None:
    opened = open_checkpoint(str(save("a", weights(0))))
    (tmp_path / "a/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="was replaced, changed or removed while it was read"):
        opened["layer0"]
    save("b", weights(1))
    (tmp_path / "b/model.safetensors").rename(tmp_path / "a/model.safetensors")
    with pytest.raises(CheckpointError, match="was replaced, changed or removed while it was read") as caught:
        opened["layer0"]
    assert caught.value.hint == "run it again"


def test_without_an_exchange_in_one_step_the_old_output_survives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems without RENAME_EXCHANGE: between the two renames the old output lies beside, and is no
    litter."""

    class Library:
        renameat2 = None

    monkeypatch.setattr(output.ctypes, "CDLL", lambda *_arguments, **_options: Library())
    out = tmp_path / "out"

    def write(text: str) -> None:
        with OutputDirectory(out, overwrite=True) as directory:
            (directory / "file").write_text(text)
            Manifest(command="test", recipe={}).write(directory)

    write("old")
    write("new")
    assert (out / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.startswith(".out.") and target.name == "out" and not out.exists():
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write("newer")
    monkeypatch.setattr(Path, "rename", rename)
    remove_litter(out)
    (aside,) = [path for path in tmp_path.iterdir() if path.name != "out"]
    assert (aside / "file").read_text() == "new"
