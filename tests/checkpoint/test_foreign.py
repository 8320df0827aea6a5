"""What is no safetensors gets a hint that is true: what it is, and what makes a checkpoint of it."""

from __future__ import annotations

import shlex
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line

Save = Callable[..., Path]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run_command_line([str(argument) for argument in arguments]) == 1
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pickled(path: str, *, legacy: bool = False) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=not legacy)


def follow(text: str) -> None:
    """Run the `soupkit convert …` that a hint gives."""
    command = text.partition("soupkit convert")[2].partition(", ")[0]
    assert run_command_line(["convert", *shlex.split(command), "--quiet"]) == 0


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.ckpt", "a.bin", "a.pth.tar", "epoch=9", "a b.pt"])
@pytest.mark.parametrize("command", ["merge uniform", "inspect"])
def test_a_pickle_is_to_be_converted(
    capsys: pytest.CaptureFixture[str], name: str, legacy: bool, command: str
) -> None:
    pickled(name, legacy=legacy)
    out = () if command == "inspect" else ("--out", "soup")
    text = refusal(capsys, *command.split(), name, *out)
    assert f"{name}: is a pickled checkpoint, not safetensors" in text
    follow(text)


def test_patterns_and_folders_of_pickles(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x/a.pt", "x/b.pt"):
        pickled(name)
    text = refusal(capsys, "merge", "uniform", "x/*.pt", "--out", "soup")
    assert "soupkit convert 'x/*.pt' --out DIR, then merge DIR" in text
    follow(text)
    assert run_command_line(["merge", "uniform", "DIR", "--out", "soup", "--quiet"]) == 0
    text = refusal(capsys, "convert", "x", "--out", "all")
    assert "name one, x/a.pt, or all: soupkit convert 'x/*.pt' --out DIR" in text
    assert "check the pattern" in refusal(capsys, "merge", "uniform", "y/*.pt", "--out", "soup")


FOREIGN = {
    "m.npz": "called an archive of numpy, and none",
    "m.gguf": "a GGUF file",
    "m.h5": "an HDF5 file",
    "m.onnx": "an ONNX graph",
    "m.msgpack": "a Flax checkpoint",
    "m.pkl": "no pickle of numpy arrays",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_called_by_their_names(capsys: pytest.CaptureFixture[str], name: str) -> None:
    Path("in").mkdir()
    Path("in", name).write_bytes(b"some bytes that are nothing else")
    for arguments in (
        ["merge", "uniform", f"in/{name}"],
        ["inspect", f"in/{name}"],
        ["convert", f"in/{name}"],
    ):
        out = [] if arguments[0] == "inspect" else ["--out", "o"]
        text = refusal(capsys, *arguments, *out)
        assert f"in/{name}: is {FOREIGN[name]}" in text
        assert "which soupkit does not read" in text
        assert "damaged" not in text
    for reference in ("in", "in/*"):
        told = "refer to the file" if reference == "in" and name in ("m.npz", "m.pkl") else FOREIGN[name]
        assert told in refusal(capsys, "merge", "uniform", reference, "--out", "o")


def test_beginnings_tell_what_names_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model").write_bytes(b"GGUF" + b"\0" * 40)
    assert "is a GGUF file" in refusal(capsys, "inspect", "model")


def test_safetensors_of_another_name_are_read(save: Save) -> None:
    """Also where the length of the header begins as a pickle does: 640 is 80 02."""
    entry = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    Path("odd").write_bytes(struct.pack("<Q", 640) + entry.ljust(640) + struct.pack("<f", 2.5))
    assert Checkpoint(Path("odd"))["w"][0] == 2.5


@pytest.mark.parametrize("command", ["merge uniform", "convert"])
def test_distributed_checkpoints_name_their_tool(capsys: pytest.CaptureFixture[str], command: str) -> None:
    Path("dcp").mkdir()
    Path("dcp", "__0_0.distcp").touch()
    assert "without its .metadata" in refusal(capsys, *command.split(), "dcp", "--out", "o")
    for name in (
        "zero/zero_to_fp32.py",
        "zero/latest",
        "zero/global_step3/zero_pp_rank_0_mp_rank_00_model_states.pt",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for folder in ("zero", "zero/global_step3"):
        assert f"zero_to_fp32.py {folder}" in refusal(capsys, *command.split(), folder, "--out", "o")


def test_a_run_folder_names_its_checkpoints(
    save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 8, 12):
        save(f"run/checkpoint-{step}", {"w": np.full(1, step, np.float32)})
    Path("run/training_args.bin").touch()
    text = refusal(capsys, "merge", "ema", "run", "--out", "o")
    assert "it holds 3 checkpoints; name them: 'run/checkpoint-*'" in text
    assert (
        run_command_line(["merge", "swa", "run/checkpoint-*", "--start", "2", "--out", "o", "--quiet"]) == 0
    )
    assert Checkpoint(Path("o"))["w"][0] == 12
