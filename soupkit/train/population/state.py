"""The state of a population in training, on disk: whole or not at all, and enough to go on with the same
bits.

FOLDER/update-00000120/ holds state.json and a safetensors file per member. It is written under another name,
synced and renamed; only then the one before it is removed. What is random is keyed by the update, so no
generator is saved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from soupkit.errors import CheckpointError
from soupkit.jsons import Json, JsonView
from soupkit.train.population.members import Member
from soupkit.train.population.population import History, Population
from soupkit.train.population.regularise import member_name
from soupkit.whole import sync_path

STATE_NAME = "state.json"
FORMAT = 1
_TENSOR = "__tensor__"


def save_state(population: Population, folder: Path, about: JsonView) -> None:
    """Write the state after the present update; `about` is kept with it. Every rank writes its own members.

    All ranks must see the same `folder`. Cost: the members and their optimizers' state, written once and
    synced.
    """
    world = population.grid.world
    final = folder / f"update-{population.num_done:08d}"
    partial = folder / f".{final.name}"
    if world.broadcast(final.exists()):
        return
    if world.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    losses = population.summed_losses().tolist()  # also waits for the folder
    if population.grid.leads:
        for row, member in enumerate(population.members):
            _write_member(population, row, member, partial / f"{member_name(member.number)}.safetensors")
    world.barrier()
    if world.is_main:
        state = {"format": FORMAT, "about": dict(about), **_shared(population, losses)}
        _write_synced(partial / STATE_NAME, json.dumps(state).encode())
        sync_path(partial)
        earlier = _complete(folder)
        partial.rename(final)
        sync_path(folder)
        for path in earlier:
            shutil.rmtree(path, ignore_errors=True)


def find_state(folder: Path) -> Path | None:
    """The last whole state in `folder`, None when there is none."""
    found = _complete(folder)
    return found[-1] if found else None


def about_state(state: Path) -> Json:
    """What was kept with a state. Raises CheckpointError when it cannot be read."""
    return dict(_read_json(state)["about"])


def read_history(state: Path) -> History:
    """The history that a state holds. Raises CheckpointError when it cannot be read."""
    return History(**_read_json(state)["history"])


def load_state(population: Population, state: Path) -> None:
    """Put the population back where it was; the ranks may be others than those that saved it.

    Raises CheckpointError for a state that is damaged or of another population.
    """
    values = _read_json(state)
    population.num_done = values["num_done"]
    population.history = History(**values["history"])
    population.put_losses(np.array(values["losses"], np.float64))
    pending: list[dict[torch.dtype, Tensor]] = []
    for row, member in enumerate(population.members):
        path = state / f"{member_name(member.number)}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
                meta = json.loads(file.metadata()["state"])
            _put_member(population, row, member, tensors, meta)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read: {error}", hint="start anew with --no-resume"
            ) from error
        pending.append(
            {d: tensors[f"pending/{d}"] for d in population.flat.rows if f"pending/{d}" in tensors}
        )
    if values["pull"]["since"] >= 0:
        rows = population.flat.rows
        before = {
            dtype: torch.stack([each[dtype] for each in pending]).to(rows[dtype].device) for dtype in rows
        }
        population.pull.start(before, values["pull"]["share"], update=values["pull"]["since"])


def _shared(population: Population, losses: list[list[float]]) -> Json:
    return {
        "losses": losses,
        "num_done": population.num_done,
        "history": vars(population.history),
        "pull": {"since": population.pull.since, "share": population.pull.share},
    }


def _write_member(population: Population, row: int, member: Member, path: Path) -> None:
    flat, updater = population.flat, member.updater
    tensors: dict[str, Tensor] = {f"flat/{dtype}": rows[row] for dtype, rows in flat.rows.items()}
    tensors |= {f"pending/{dtype}": rows[row] for dtype, rows in population.pull.before.items()}
    tensors |= {f"integers/{name}": tensor for name, tensor in flat.integers(row).items()}
    meta = {
        "num_done": updater.num_done,
        "num_skipped": updater.num_skipped,
        "scaler": updater.scaler.state_dict(),
        "optimizer": _without_tensors(updater.optimizer.state_dict(), "optimizer", tensors),
        "averages": {
            name: _without_tensors(average.state(), f"averages/{name}", tensors)
            for name, average in member.averages.items()
        },
    }
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(held, path, metadata={"state": json.dumps(meta)})
    sync_path(path)


def _put_member(
    population: Population, row: int, member: Member, tensors: Mapping[str, Tensor], meta: JsonView
) -> None:
    flat, updater = population.flat, member.updater
    for dtype, rows in flat.rows.items():
        rows[row].copy_(tensors[f"flat/{dtype}"])
    for name, tensor in flat.integers(row).items():
        tensor.copy_(tensors[f"integers/{name}"])
    updater.num_done, updater.num_skipped = meta["num_done"], meta.get("num_skipped", 0)
    if meta["scaler"]:
        updater.scaler.load_state_dict(meta["scaler"])
    for name, average in member.averages.items():
        average.load(_with_tensors(meta["averages"][name], tensors))
    _load_optimizer(updater.optimizer, _with_tensors(meta["optimizer"], tensors))


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Json) -> None:
    """Load a state whose tensors lie as the parameters do: sums of another order would not give the same
    bits."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    laid_out: dict[int, Any] = {}
    for key, values in state["state"].items():
        like = parameters[int(key)]
        laid_out[int(key)] = {name: _laid_out(value, like) for name, value in values.items()}
    optimizer.load_state_dict({"state": laid_out, "param_groups": state["param_groups"]})


def _laid_out(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON-able `value`: its tensors go into `tensors`, and their names stay in their places."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(key): _without_tensors(inner, f"{name}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner, f"{name}/{i}", tensors) for i, inner in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _with_tensors(inner, tensors) for key, inner in value.items()}
    return [_with_tensors(inner, tensors) for inner in value] if isinstance(value, list) else value


def _complete(folder: Path) -> list[Path]:
    """Whole states, oldest first: what has its final name is whole."""
    return sorted(path for path in folder.glob("update-*") if (path / STATE_NAME).is_file())


def _read_json(state: Path) -> Json:
    try:
        values: Json = json.loads((state / STATE_NAME).read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{state}: cannot be read: {error}", hint="start anew with --no-resume"
        ) from error
    return values


def _write_synced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync_path(path)
