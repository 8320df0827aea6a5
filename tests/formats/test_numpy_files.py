"""Archives and pickles of numpy: no value differs, whatever wrote them; objects are refused."""

import collections
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line
from soupkit.errors import CheckpointError, SoupkitError

DRAW = np.random.default_rng(0)
ARRAYS: dict[str, Any] = {
    "stem/kernel": DRAW.normal(size=(7, 5, 3, 4)).astype(np.float32),
    "head/bias": DRAW.normal(size=300).astype(np.float16),
    "columns": np.asfortranarray(DRAW.normal(size=(40, 9))),
    "brain": DRAW.normal(size=(600,)).astype(ml_dtypes.bfloat16),
    "count": np.array(7),
    "ids": np.arange(1000),
    "empty": np.zeros((0, 3), np.float32),
}


def same(checkpoint: Checkpoint, arrays: dict[str, Any]) -> None:
    assert checkpoint.slots.keys() == arrays.keys()
    for name, values in arrays.items():
        assert checkpoint[name].dtype == values.dtype
        assert checkpoint[name].shape == values.shape
        assert checkpoint[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_archives(tmp_path: Path, save: Any, prefix: str) -> None:
    """With the parameters of an optimizer beside them, as big_vision writes them."""
    beside = {"opt/0/mu": np.ones(3)} if prefix else {}
    save(tmp_path / "m.npz", **{prefix + name: values for name, values in ARRAYS.items()}, **beside)
    same(Checkpoint(tmp_path / "m.npz"), ARRAYS)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles_of_detectron2(tmp_path: Path, protocol: int) -> None:
    arrays = {name: values for name, values in ARRAYS.items() if name != "brain"}
    value = {"model": collections.OrderedDict(arrays), "__author__": "Caffe2", "matching_heuristics": True}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value, protocol))
    same(Checkpoint(tmp_path / "m.pkl"), arrays)


def test_they_merge_with_each_other(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.array([1.0, 2.0], np.float32))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"w": np.array([3.0, 6.0], np.float32)}))
    out = str(tmp_path / "soup")
    assert run_command_line(["merge", "uniform", str(tmp_path / "*.[np]*"), "--out", out, "--quiet"]) == 0
    assert Checkpoint(tmp_path / "soup")["w"].tolist() == [2, 4]
    assert run_command_line(["verify", out, "--inputs", "--quiet"]) == 0


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("it-ran"),)


def test_objects_are_refused_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("objects.npz", w=np.array([Evil()], object))
    Path("objects.pkl").write_bytes(pickle.dumps({"w": np.array([Evil()], object), "x": np.ones(3)}))
    Path("evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("objects.npz", "objects.pkl", "evil.pkl"):
        with pytest.raises(CheckpointError, match=name):
            Checkpoint(Path(name))
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("name", ["m.npz", "m.pkl"])
def test_damage_is_told(tmp_path: Path, name: str) -> None:
    """A mutated file is read or refused; nothing else happens."""
    path = tmp_path / name
    arrays = {"a": np.arange(600.0), "b": np.ones((2, 3), np.float32)}
    if name == "m.npz":
        np.savez(path, **arrays)
    else:
        path.write_bytes(pickle.dumps({"model": arrays}, 4))
    content, draw = path.read_bytes(), np.random.default_rng(1)
    for _ in range(150):
        changed = bytearray(content)
        for position in draw.integers(0, 400, 3) if draw.random() < 0.5 else -draw.integers(1, 300, 2):
            changed[position] = draw.integers(256)
        path.write_bytes(changed[: len(content) - int(draw.integers(0, 2)) * int(draw.integers(1, 99))])
        with suppress(SoupkitError):
            dict(Checkpoint(path))
