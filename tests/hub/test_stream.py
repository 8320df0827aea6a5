"""Merging straight from the Hub by range reads."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hub.conftest import checkpoint, tensors
from hub.server import Hub

from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.hub.ranges import BUFFER_BYTES, LARGEST, NUM_KEPT, SMALLEST, Windows, window_bytes
from soupkit.checkpoint.reference import open_checkpoint, open_references
from soupkit.cli.app import run_command_line
from soupkit.manifest import Manifest

SIZE = 300_000  # 20 MB of weights each: several windows


@pytest.fixture
def three(hub: Hub, tmp_path: Path) -> list[Path]:
    """org/toy at v0, v1 and v2."""
    sources = [checkpoint(tmp_path / f"c{seed}", seed, size=SIZE) for seed in range(3)]
    for seed, source in enumerate(sources):
        hub.add("org/toy", source, tag=f"v{seed}")
    hub.requests.clear()
    hub.sent = 0
    return sources


def test_the_same_soup_and_nothing_stored(hub: Hub, three: list[Path], tmp_path: Path) -> None:
    merge = ["merge", "uniform", "--quiet", "--out"]
    assert run_command_line([*merge, str(tmp_path / "local"), *map(str, three)]) == 0
    assert run_command_line([*merge, str(tmp_path / "streamed"), "org/toy@v{0..2}", "--stream"]) == 0
    assert not list((tmp_path / "hf-cache").rglob("*.safetensors"))
    total = 3 * (three[0] / "model.safetensors").stat().st_size
    assert total <= hub.sent < 1.05 * total + 600_000  # every byte once, and the headers
    assert (tmp_path / "streamed/vocab.txt").exists()
    local, streamed = (Manifest.read(tmp_path / name) for name in ("local", "streamed"))
    assert streamed.outputs["content"] == local.outputs["content"]
    assert [entry["content"] for entry in streamed.inputs] == [entry["content"] for entry in local.inputs]
    assert streamed.inputs[0]["sha256"]["model.safetensors"]


def test_files_in_the_cache_are_read_from_there(hub: Hub, three: list[Path], tmp_path: Path) -> None:
    assert run_command_line(["pull", "org/toy@v0", "org/toy@v1", "--quiet"]) == 0
    hub.sent = 0
    arguments = ["merge", "uniform", "org/toy@v{0..2}", "--stream", "--out", str(tmp_path / "out"), "--quiet"]
    assert run_command_line(arguments) == 0
    assert hub.sent < 1.1 * (three[0] / "model.safetensors").stat().st_size + 600_000


@pytest.mark.parametrize("stream", [True, False])
def test_reproduce_and_verify_from_the_manifest(
    hub: Hub, three: list[Path], tmp_path: Path, stream: bool
) -> None:
    """The branch has moved on; the commits in the manifest have not."""
    options = ["--stream"] if stream else []
    hub.add("org/toy", three[0])
    soup = str(tmp_path / "soup")
    assert (
        run_command_line(["merge", "uniform", "org/toy", "org/toy@v1", "--out", soup, "--quiet", *options])
        == 0
    )
    hub.add("org/toy", three[2])
    assert run_command_line(["verify", soup, "--inputs", "--quiet"]) == 0
    assert run_command_line(["reproduce", soup, "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert content_hash(open_checkpoint(soup)) == content_hash(open_checkpoint(str(tmp_path / "again")))


def test_streaming_what_is_scored_is_refused(hub: Hub, three: list[Path], tmp_path: Path) -> None:
    arguments = ["merge", "interpolate", "org/toy@v0", "org/toy@v1", "--stream", "--data", "digits"]
    assert run_command_line([*arguments, "--out", str(tmp_path / "out")]) == 2


def test_windows_give_every_byte_in_any_order() -> None:
    data = np.random.default_rng(0).bytes(10_000)
    asked: list[tuple[int, int]] = []

    def fetch(_file: Path, start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return data[start:stop]

    windows = Windows(fetch, window=512)
    random = np.random.default_rng(1)
    for _ in range(300):
        start = int(random.integers(len(data)))
        length = int(random.integers(min(3000, len(data) - start) + 1))
        out = bytearray(length)
        windows.read(Path("x"), start, memoryview(out), size=len(data))
        assert bytes(out) == data[start : start + length]
    assert all(stop - start == 512 or stop == len(data) for start, stop in asked)


def test_windows_are_fetched_once_by_readers_in_order_and_never_more_than_a_few_are_kept() -> None:
    data = bytes(range(256)) * 400
    asked: list[int] = []
    lock = threading.Lock()

    def fetch(_file: Path, start: int, stop: int) -> bytes:
        with lock:
            asked.append(start)
        return data[start:stop]

    windows = Windows(fetch, window=1024)
    halves = [range(0, len(data) // 2, 100), range(len(data) // 2, len(data), 100)]
    barrier = threading.Barrier(2)

    def reader(starts: range) -> None:
        barrier.wait()
        for start in starts:
            out = bytearray(min(100, len(data) - start))
            windows.read(Path("x"), start, memoryview(out), size=len(data))
            assert bytes(out) == data[start : start + len(out)]
            assert len(windows._kept) <= NUM_KEPT

    threads = [threading.Thread(target=reader, args=(starts,)) for starts in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    windows.close()
    assert len(set(asked)) == len(data) // 1024
    assert len(asked) <= len(set(asked)) + 4


def test_what_a_fetch_raises_the_reader_sees() -> None:
    def fetch(_file: Path, _start: int, _stop: int) -> bytes:
        raise ZeroDivisionError

    windows = Windows(fetch, window=512)
    with pytest.raises(ZeroDivisionError):
        windows.read(Path("x"), 0, memoryview(bytearray(10)), size=1000)
    windows.close()


def test_the_buffers_of_all_ingredients_stay_within_the_budget() -> None:
    for num_ingredients in (1, 2, 8, 30, 72, 200, 511):
        window = window_bytes(num_ingredients)
        assert SMALLEST <= window <= LARGEST
        assert window & (window - 1) == 0
        assert num_ingredients * NUM_KEPT * window <= BUFFER_BYTES


def test_several_ingredients_share_the_buffers(hub: Hub, three: list[Path]) -> None:
    opened = open_references(["org/toy@v{0..2}"] * 1, stream=True)
    for each, seed in zip(opened, range(3), strict=True):
        np.testing.assert_array_equal(each["layer.weight"], tensors(seed, size=SIZE)["layer.weight"])
