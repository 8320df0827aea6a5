"""What is remembered comes back as it was, or not at all."""

from __future__ import annotations

import errno
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from soupkit.remembered import KINDS, Remembered, clear, usage
from soupkit.world import cache_folder

ARRAYS = {"margins": np.arange(100, dtype=np.float32), "values": np.zeros((2, 3))}


def entry() -> tuple[Remembered, str, Path]:
    memory = Remembered("scores")
    key = memory.key("weights", [0.5, 0.5])
    memory.write(key, {"value": 0.25, "nan": float("nan"), "none": None}, ARRAYS)
    (path,) = (cache_folder() / "scores").iterdir()
    return memory, key, path


def test_it_comes_back() -> None:
    memory, key, path = entry()
    found = memory.read(key)
    assert found is not None
    values, arrays = found
    assert (values["value"], values["none"], np.isnan(values["nan"])) == (0.25, None, True)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert memory.read(memory.key("weights", [0.5, 0.6])) is None
    assert Remembered("points").key("weights", [0.5, 0.5]) != key
    assert memory.failure is None
    assert path.name.startswith(key)


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"x",
        lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
        lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
        lambda content: b"garbage" * 40,
        lambda content: pickle.dumps({"value": 1.0}),
        lambda content: npz(values=np.array('{"value": 1.0}')),
        lambda content: npz(values=np.array({"value": 1.0}, dtype=object)),
    ],
)
def test_a_damaged_file_is_as_if_it_were_not_there(damage: Callable[[bytes], bytes]) -> None:
    memory, key, path = entry()
    path.write_bytes(damage(path.read_bytes()))
    assert memory.read(key) is None
    memory.write(key, {"value": 2.0})
    assert memory.read(key) == ({"value": 2.0}, {})


def test_every_bit_counts() -> None:
    memory, key, path = entry()
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        assert memory.read(key) is None, place


@pytest.mark.parametrize("place", ["/dev/null", "/proc/nope", "file/below", "loop"])
def test_a_cache_that_cannot_be_written_is_told_once(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("SOUPKIT_CACHE", str(tmp_path / place))
    memory = Remembered("scores")
    memory.write("0" * 32, {"value": 1.0})
    assert memory.read("0" * 32) is None
    assert memory.failure
    assert memory.said(0, "scores") == [f"nothing could be remembered for later runs: {memory.failure}"]
    assert usage("scores").num_files == 0
    assert clear("scores") == []


def test_a_full_disk_leaves_nothing_half_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    memory = Remembered("scores")
    memory.write("0" * 32, {"value": 1.0})
    assert memory.failure == "No space left on device"
    assert list((cache_folder() / "scores").iterdir()) == []


def test_no_home_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SOUPKIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    memory = Remembered("scores")
    memory.write("0" * 32, {"value": 1.0})
    assert memory.read("0" * 32) is None
    assert "home" in str(memory.failure)


def test_it_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace = Path.replace
    monkeypatch.setattr("soupkit.whole.sync_path", lambda _path: done.append("synced"))
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (done.append("renamed"), replace(self, target))[1]
    )
    entry()
    assert done == ["synced", "renamed"]


def test_what_may_not_be_read_or_written() -> None:
    _, key, path = entry()
    assert Remembered("scores", reads=False).read(key) is None
    path.unlink()
    Remembered("scores", writes=False).write(key, {"value": 1.0})
    assert not path.exists()


def test_forgetting_removes_what_soupkit_wrote_and_nothing_else() -> None:
    _, key, path = entry()
    folder = path.parent
    for name in (
        f".{key}.soupkit-part-17.remembered",
        f"{key}.npz",
        f"{key}.json",
    ):  # killed, and earlier formats
        (folder / name).write_text("x")
    (folder / "mine.npz").write_text("x")
    (folder / "0123.remembered").write_text("x")
    assert usage("scores").num_files == 4
    assert all(usage(kind).num_files == 0 for kind in KINDS if kind != "scores")
    assert clear("scores") == []
    assert {left.name for left in folder.iterdir()} == {"mine.npz", "0123.remembered"}


def test_a_mixture_is_known_by_what_is_summed_in_which_order() -> None:
    from soupkit.merge.mixture import weighted

    def key(names: list[str], contents: list[str], coefficients: list[float]) -> str:
        return Remembered("scores").key_of(contents, weighted(names, coefficients), "judge")

    known = key(["a", "b"], ["0", "1"], [0.25, 0.75])
    assert key(["b", "a"], ["1", "0"], [0.75, 0.25]) == known
    assert key(["x/a", "x/b"], ["0", "1"], [0.25, 0.75]) == known
    assert key(["b", "a"], ["0", "1"], [0.25, 0.75]) != known
    assert key(["a", "b"], ["0", "1"], [0.75, 0.25]) != known
