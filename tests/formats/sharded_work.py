"""What ranks write in the tests of sharded formats: with torch's own functions, and what the whole tensors
are."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


class Net(nn.Module):
    """Uneven sizes, so that ranks hold unequal parts and some none; batch norm, an embedding in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5, dtype=torch.bfloat16)
        self.body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
        self.scale = nn.Parameter(torch.rand(1))


def write_all(folder: Path, size: int) -> None:
    """Every layout, into folders of their own."""
    warnings.simplefilter("ignore")
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    torch.manual_seed(size)
    net = trained(Net())
    optimizer = torch.optim.AdamW(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = {
        "model": get_model_state_dict(net),
        "optimizer": get_optimizer_state_dict(net, optimizer),
        "step": 3,
    }
    save_whole(folder / "fsdp2.safetensors", states["model"])
    if size == 2:
        dcp.async_save(states, checkpoint_id=folder / "fsdp2").result()
    else:
        dcp.save(states, checkpoint_id=folder / "fsdp2")
    (folder / "ranks").mkdir(exist_ok=True)
    torch.save(net.state_dict(), folder / "ranks" / f"model_world_size_{size}_rank_{rank}.pt")
    write_fsdp1(folder, rank)
    placed = placements(size)
    save_whole(folder / "placed.safetensors", placed)
    dcp.save(placed, checkpoint_id=folder / "placed")
    torch.save(placed, folder / f"placed_rank{rank}.pt")
    dist.destroy_process_group()


def trained(net: Net) -> Net:
    """The same numbers in every rank, sharded."""
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape))
    fully_shard(net.body)
    return fully_shard(net)


def write_fsdp1(folder: Path, rank: int) -> None:
    net = FullyShardedDataParallel(
        nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)), device_id=torch.device("cpu"), use_orig_params=True
    )
    with FullyShardedDataParallel.state_dict_type(net, StateDictType.FULL_STATE_DICT):
        whole = net.state_dict()
    if rank == 0:
        save_file(whole, folder / "fsdp1.safetensors")
    with FullyShardedDataParallel.state_dict_type(net, StateDictType.SHARDED_STATE_DICT):
        states = net.state_dict()
    dcp.save({"model": states}, checkpoint_id=folder / "fsdp1" / "pytorch_model_fsdp_0")
    (folder / "shards").mkdir(exist_ok=True)
    torch.save(states, folder / "shards" / f"rank{rank}.pt")


def placements(size: int) -> dict[str, torch.Tensor]:
    """Tensors by rows, by columns, by both, everywhere, in other orders of memory, and plain ones."""
    mesh = init_device_mesh("cpu", (size,))
    made = {
        "rows": distribute_tensor(torch.randn(6, 5), mesh, [Shard(0)]),
        "columns": distribute_tensor(torch.randn(3, 9).half(), mesh, [Shard(1)]),
        "middle": distribute_tensor(torch.randn(2, 7, 3).bfloat16(), mesh, [Shard(1)]),
        "everywhere": distribute_tensor(torch.arange(5), mesh, [Replicate()]),
        "turned": distribute_tensor(torch.randn(9, 4).t(), mesh, [Shard(1)]),
        "image": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "flag": torch.tensor(True),
        "small": torch.randn(3).to(torch.float8_e4m3fn),
    }
    if size == 4:
        square = init_device_mesh("cpu", (2, 2))
        made["square"] = distribute_tensor(torch.randn(5, 7), square, [Shard(0), Shard(1)])
        made["twice"] = distribute_tensor(torch.randn(5, 7), square, [Shard(0), Replicate()])
        made["same"] = distribute_tensor(torch.randn(9, 2), square, [Shard(0), Shard(0)])
    return made


def save_whole(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    whole = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone().contiguous()
        for name, tensor in tensors.items()
    }
    if dist.get_rank() == 0:
        save_file(whole, path)
