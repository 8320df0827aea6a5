"""torch.distributed.checkpoint: no value differs from the whole tensors, whoever wrote them how."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.cli.app import run_command_line


def differing(checkpoint: Checkpoint, whole: Checkpoint) -> int:
    """How many numbers differ, bit for bit; names, dtypes and shapes must not."""
    assert dict(checkpoint.slots) == dict(whole.slots)
    return sum(
        int(np.sum(checkpoint[name].reshape(-1).view(np.uint8) != whole[name].reshape(-1).view(np.uint8)))
        for name in whole
    )


@pytest.mark.parametrize("name", ["fsdp1", "fsdp2", "placed"])
def test_nothing_differs(sharded: Path, name: str) -> None:
    assert differing(Checkpoint(sharded / name), Checkpoint(sharded / f"{name}.safetensors")) == 0


def test_mixed_layouts_in_one_merge(sharded: Path, tmp_path: Path) -> None:
    """A folder of torch's and a file of safetensors; what was read is recorded and found again."""
    whole = load_file(sharded / "fsdp2.safetensors")
    other = {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in whole.items()}
    save_file(other, tmp_path / "other.safetensors")
    out = tmp_path / "soup"
    assert (
        run_command_line(
            [
                "merge",
                "uniform",
                str(sharded / "fsdp2"),
                str(tmp_path / "other.safetensors"),
                "--out",
                str(out),
                "--quiet",
            ]
        )
        == 0
    )
    soup = load_file(out / "model.safetensors")
    for name, tensor in whole.items():
        wanted = (tensor.double() * 1.5).to(tensor.dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(soup[name], wanted)
    assert run_command_line(["verify", str(out), "--inputs", "--quiet"]) == 0


@pytest.mark.filterwarnings("ignore")
def test_what_is_written_fills_a_state_dict_of_torch(sharded: Path, tmp_path: Path) -> None:
    """There and back: torch's folder to safetensors to a folder that torch loads, shards in between."""
    words = [str(sharded / "placed"), "--out", str(tmp_path / "flat"), "--max-shard-size", "100B", "--quiet"]
    assert run_command_line(["convert", *words]) == 0
    assert (tmp_path / "flat" / "model.safetensors.index.json").is_file()
    words = [str(tmp_path / "flat"), "--to", "dcp", "--out", str(tmp_path / "dcp"), "--quiet"]
    assert run_command_line(["convert", *words]) == 0
    wanted = load_file(sharded / "placed.safetensors")
    loaded = {name: torch.empty_like(tensor) for name, tensor in wanted.items()}
    dcp.load(loaded, checkpoint_id=tmp_path / "dcp", no_dist=True)
    for name, tensor in wanted.items():
        assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert run_command_line(["verify", str(tmp_path / "dcp"), "--inputs", "--quiet"]) == 0


@pytest.mark.filterwarnings("ignore")
def test_optimizers_are_left_out_and_a_choice_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, flat = torch.ones(3), torch.full((3,), 3.0), tmp_path / "flat"
    dcp.save({"w": one, "optimizer.state.w": two}, checkpoint_id=flat, no_dist=True)
    assert list(Checkpoint(flat)) == ["w"]
    titan = tmp_path / "titan"
    dcp.save(
        {"w": one, "optimizer": {"state": {"w": two}}, "lr_scheduler": {"x": two}},
        checkpoint_id=titan,
        no_dist=True,
    )
    assert list(Checkpoint(titan)) == ["w"]
    both = tmp_path / "both"
    nested = {"model": {"w": one}, "ema_model": {"w": two}, "optimizer": {"state": {"w": {"exp_avg": one}}}}
    dcp.save(nested, checkpoint_id=both, no_dist=True)
    assert run_command_line(["merge", "uniform", str(both), str(flat), "--out", str(tmp_path / "soup")]) == 0
    assert "took ema_model; there are also model" in capsys.readouterr().err
    assert Checkpoint(tmp_path / "soup")["w"].tolist() == [2, 2, 2]
    raw = tmp_path / "raw"
    assert run_command_line(["convert", str(both), "--prefer", "raw", "--out", str(raw), "--quiet"]) == 0
    assert Checkpoint(raw)["w"].tolist() == [1, 1, 1]
    assert run_command_line(["verify", str(raw), "--inputs", "--quiet"]) == 0
