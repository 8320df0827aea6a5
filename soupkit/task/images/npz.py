"""The arrays of JAX (big_vision, AugReg) under the names of a timm model: timm's own loader, and a proof that
it moved numbers only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import Array
from soupkit.errors import TaskError
from soupkit.task.images.models import build
from soupkit.task.spec import ModelSpec


def named_as_timm(spec: ModelSpec, path: Path) -> dict[str, torch.Tensor]:
    """The weights of an .npz file as the state dict of the timm model `spec`.

    Proven: sorted, the numbers of the state dict and those of the file are the same, so that nothing was
    resampled, left out or left as it was drawn. Raises TaskError where they are not, and for models that timm
    has no loader of such files for. Memory: the model, four times.
    """
    model = build(spec)
    load = getattr(model, "load_pretrained", None)
    if not callable(load):
        raise TaskError(
            f"timm has no loader of .npz files for {spec.name}", hint="leave --model out to keep the names"
        )
    try:
        load(str(path))
    except Exception as error:  # whatever is missing, or of another shape
        raise TaskError(f"{path}: timm cannot load it into {spec.name}: {error!r}", hint=_OTHER) from None
    state = dict(model.state_dict())
    made = _sorted([tensor.numpy() for tensor in state.values()])
    there = _sorted(list(Checkpoint(path).values()))
    if not np.array_equal(made, there, equal_nan=True):
        raise TaskError(
            f"{path}: holds {there.size:,} numbers, {spec.name} has {made.size:,}, and they are not the "
            "same ones: timm's loader resized or left out some",
            hint=_OTHER,
        )
    return state


_OTHER = (
    "name the model that it was trained as, with its size and classes: timm:NAME,img_size=384,num_classes=N; "
    "leave --model out to keep the names"
)


def _sorted(arrays: list[Array]) -> Array:
    return np.sort(np.concatenate([array.reshape(-1).astype(np.float32) for array in arrays]))
