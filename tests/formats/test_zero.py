"""DeepSpeed ZeRO folders: the float32 weights as DeepSpeed's own zero_to_fp32 makes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formats.zero_layout import write_zero

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.errors import CheckpointError

STAGES = [(1, 2), (2, 4), (2, 3), (3, 1), (3, 2), (3, 4)]


def weights() -> dict[str, Any]:
    torch.manual_seed(0)
    first = {"embed.weight": torch.randn(11, 5), "a.weight": torch.randn(3, 7), "scale": torch.randn(1)}
    second = {"a.bias": torch.randn(3), "norm.weight": torch.randn(13)}
    buffers = {"norm.mean": torch.randn(13).half(), "norm.count": torch.tensor(5)}
    return {
        "groups": [first, second],
        "buffers": buffers,
        "frozen": {"ice.weight": torch.randn(3, 3).bfloat16()},
    }


def expected(made: dict[str, Any]) -> dict[str, torch.Tensor]:
    buffers = {k: v.float() if v.is_floating_point() else v for k, v in made["buffers"].items()}
    trained = {name: tensor for group in made["groups"] for name, tensor in group.items()}
    return {**buffers, **made["frozen"], **trained, "head.weight": trained["embed.weight"]}


@pytest.mark.parametrize("inner", [".", "global_step7"])
@pytest.mark.parametrize(("stage", "world"), STAGES)
def test_nothing_differs(tmp_path: Path, stage: int, world: int, inner: str) -> None:
    made = weights()
    write_zero(tmp_path / "zero", **made, stage=stage, world=world)
    checkpoint = Checkpoint(tmp_path / "zero" / inner)
    wanted = expected(made)
    assert checkpoint.ties == {"head.weight": "embed.weight"}
    assert checkpoint.slots.keys() == wanted.keys()
    for name, tensor in wanted.items():
        bits = torch.from_numpy(checkpoint[name].reshape(-1).view(np.uint8))
        assert checkpoint.slots[name].shape == tuple(tensor.shape)
        assert torch.equal(bits, tensor.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize(
    ("stage", "gone"), [(2, "1_mp_rank_00_optim"), (3, "2_mp_rank_00_model"), (3, "0_mp_rank_00_model")]
)
def test_a_missing_rank_is_told(tmp_path: Path, stage: int, gone: str) -> None:
    write_zero(tmp_path / "zero", **weights(), stage=stage, world=3)
    (tmp_path / "zero" / "global_step7" / f"zero_pp_rank_{gone}_states.pt").unlink()
    with pytest.raises(CheckpointError, match="rank"):
        Checkpoint(tmp_path / "zero")


def test_other_parallelism_is_refused(tmp_path: Path) -> None:
    write_zero(tmp_path / "zero", **weights(), stage=2, world=2)
    folder = tmp_path / "zero" / "global_step7"
    (folder / "mp_rank_00_model_states.pt").rename(folder / "mp_rank_01_model_states.pt")
    with pytest.raises(CheckpointError, match="tensor, pipeline or expert parallelism"):
        Checkpoint(folder)
