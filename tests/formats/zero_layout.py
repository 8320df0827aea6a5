"""DeepSpeed ZeRO folders in the layout that its zero_to_fp32.py reads, of given weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]


def write_zero(
    folder: Path, groups: list[Tensors], *, stage: int, world: int, buffers: Tensors, frozen: Tensors
) -> None:
    """groups: the trained parameters of each optimizer group, float32; buffers and frozen ones in any
    dtype."""
    inside = folder / "global_step7"
    inside.mkdir(parents=True)
    (folder / "latest").write_text("global_step7")
    (folder / "zero_to_fp32.py").write_text("# DeepSpeed's own\n")
    parts = _stage3(groups, world) if stage == 3 else _stage2(groups, world)
    for rank in range(world):
        counts = world if stage == 3 else [world] * len(groups)
        state: dict[str, Any] = {"zero_stage": stage, "partition_count": counts}
        state["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"] = parts[rank]
        state["base_optimizer_state"] = {"state": {0: {"exp_avg": torch.zeros(3)}}}
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, inside / name)
        if stage == 3 or not rank:
            model = _model_state(groups, buffers, frozen, stage, world, rank)
            prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
            torch.save(model, inside / f"{prefix}mp_rank_00_model_states.pt")


def _stage2(groups: list[Tensors], world: int) -> list[list[torch.Tensor]]:
    """A group's parameters one after the other, padded to 2 × world, cut into one part for each rank."""
    parts: list[list[torch.Tensor]] = [[] for _ in range(world)]
    for group in groups:
        flat = torch.cat([tensor.reshape(-1) for tensor in group.values()])
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * world)), value=99)
        for rank, part in enumerate(flat.chunk(world)):
            parts[rank].append(part.clone())
    return parts


def _stage3(groups: list[Tensors], world: int) -> list[list[torch.Tensor]]:
    """Every parameter cut into one part for each rank; a rank's parts of a group one after the other."""
    cut = [[_cut(tensor, world) for tensor in group.values()] for group in groups]
    return [[torch.cat([parts[rank] for parts in group]) for group in cut] for rank in range(world)]


def _cut(tensor: torch.Tensor, world: int) -> list[torch.Tensor]:
    part = math.ceil(tensor.numel() / world)
    flat = torch.nn.functional.pad(tensor.reshape(-1), (0, part * world - tensor.numel()), value=99)
    return [flat[rank * part : (rank + 1) * part].clone() for rank in range(world)]


def _model_state(
    groups: list[Tensors], buffers: Tensors, frozen: Tensors, stage: int, world: int, rank: int
) -> dict[str, Any]:
    trained = {name: tensor.bfloat16() for group in groups for name, tensor in group.items()}
    names = [*trained, *frozen]
    module = {**trained, **frozen} if stage < 3 else {name: torch.empty(0) for name in names}
    fragments = {name: _cut(tensor, world)[rank] if stage == 3 else tensor for name, tensor in frozen.items()}
    return {
        "module": OrderedDict({**module, **buffers}),
        "buffer_names": list(buffers),
        "param_shapes": [
            OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups
        ],
        "frozen_param_shapes": {name: tensor.shape for name, tensor in frozen.items()} or None,
        "frozen_param_fragments": fragments or None,
        "shared_params": {"head.weight": "embed.weight"},
        "ds_version": "0.19.8",
        "ds_config": {"zero_optimization": {"stage": stage}},
    }
