"""The state of a fit in training, on disk: one file, whole or not at all, enough to go on with the same
bits."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from soupkit.curve.bends import Bends
from soupkit.curve.descent import Descent
from soupkit.errors import CheckpointError
from soupkit.jsons import JsonView
from soupkit.whole import whole_file

FORMAT = 1


def save_state(path: Path, descent: Descent, bends: Bends, model: nn.Module, *, about: JsonView) -> None:
    """Write what a fit needs to go on: bends, buffers of the model, optimizer, torch's generator, how far it
    is.

    about: JSON-able, what a fit must have in common with this one to continue it. Cost: writes the bends
    once.
    """
    state = {
        "format": FORMAT,
        "about": dict(about),
        "num_done": descent.num_done,
        "losses": list(descent.losses),
        "bends": bends.state_dict(),
        "buffers": dict(model.named_buffers()),
        "optimizer": descent.optimizer.state_dict(),
        "generator": torch.get_rng_state(),
        "cuda_generator": torch.cuda.get_rng_state(gpu) if (gpu := _gpu_of(model)) else None,
    }
    with whole_file(path, sync=True) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, descent: Descent, bends: Bends, model: nn.Module, *, about: JsonView) -> bool:
    """Continue the fit that was saved at `path`; False when there is none, or it is another fit's.

    Raises CheckpointError for a file that is damaged. Only tensors and plain values are unpickled.
    """
    if not path.is_file():
        return False
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT or state["about"] != dict(about):
            return False
        bends.load_state_dict(state["bends"])
        for name, buffer in model.named_buffers():
            buffer.copy_(state["buffers"][name])
        descent.optimizer.load_state_dict(state["optimizer"])
        descent.num_done, descent.losses = state["num_done"], state["losses"]
        torch.set_rng_state(state["generator"])
        if state["cuda_generator"] is not None and (gpu := _gpu_of(model)):
            torch.cuda.set_rng_state(state["cuda_generator"], gpu)
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error}", hint="remove it: the fit then starts anew"
        ) from error
    return True


def _gpu_of(model: nn.Module) -> torch.device | None:
    """Where dropout draws from a generator of the device."""
    device = next(model.parameters()).device
    return device if device.type == "cuda" else None
