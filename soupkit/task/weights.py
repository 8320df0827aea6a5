"""Numpy arrays into a torch model and out of it, with nothing renamed, dropped or reshaped on the way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from soupkit.checkpoint.source import Source
from soupkit.errors import TaskError
from soupkit.jsons import JsonView


def load_weights(model: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy `tensors` into the parameters and persistent buffers of `model`, in place, on whatever device it
    is.

    Strict: a missing or unexpected name, another shape, or a float where the model counts raises TaskError
    before anything is changed. One name of a tied group is enough. Floating dtypes are converted to the
    model's.
    """
    targets = model.state_dict()
    _check(targets, tensors)
    with torch.no_grad():
        for name in tensors:
            source = to_torch(tensors[name])
            if source.is_floating_point() != targets[name].is_floating_point():
                raise TaskError(
                    f"{name} is {source.dtype} in the checkpoint, {targets[name].dtype} in the model"
                )
            targets[name].copy_(source)


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state of `model`: views of its memory on the CPU, copies from elsewhere; of tied tensors the first
    name."""
    taken: set[tuple[object, ...]] = set()
    found = {}
    for name, tensor in model.state_dict().items():
        identity = _identity(name, tensor)
        if identity not in taken:
            taken.add(identity)
            found[name] = to_numpy(tensor)
    return found


def arrays_of_state(state: JsonView) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of an averaged model's state, and {name: the name under which the same tensor stands}; ties
    are told by the objects themselves. Copies nothing that lies on the CPU."""
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    ties = {name: kept for name, tensor in tensors.items() if (kept := first[id(tensor)]) != name}
    return {name: to_numpy(tensors[name]) for name in first.values()}, ties


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the array's memory where it may; ml_dtypes' bfloat16 and float8 become torch's."""
    array = (
        np.ascontiguousarray(array) if array.ndim else np.asarray(array)
    )  # the former makes 0-d arrays 1-d
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.type.__module__ != "ml_dtypes":
        return torch.from_numpy(array)
    dtype: torch.dtype = getattr(torch, array.dtype.name)
    return torch.from_numpy(array.view(f"u{array.dtype.itemsize}")).view(dtype)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """An array that shares a CPU tensor's memory; bfloat16 and float8 become ml_dtypes'."""
    tensor = tensor.detach().cpu()
    name = str(tensor.dtype).removeprefix("torch.")
    if name.startswith(("bfloat", "float8")):
        import ml_dtypes

        bits = torch.uint16 if tensor.element_size() == 2 else torch.uint8
        return tensor.contiguous().view(bits).numpy().view(getattr(ml_dtypes, name))
    return tensor.numpy()


def _check(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, np.ndarray]) -> None:
    present = {_identity(name, targets[name]) for name in tensors if name in targets}
    missing = [name for name, target in targets.items() if _identity(name, target) not in present]
    unexpected = [name for name in tensors if name not in targets]
    if missing or unexpected:
        parts = [_few("lacks", missing)] * bool(missing) + [_few("has the unexpected", unexpected)] * bool(
            unexpected
        )
        raise TaskError(
            f"the checkpoint is not this model's: it {' and '.join(parts)}",
            hint="name the architecture that it was trained with: --model timm:NAME or open_clip:NAME",
        )
    for name in tensors:
        expected, shape = tuple(targets[name].shape), _shape(tensors, name)
        if shape != expected:
            raise TaskError(
                f"{name} has shape {list(shape)} in the checkpoint, {list(expected)} in the model",
                hint="options of the model go behind its name: --model "
                "timm:resnet18,num_classes=10,img_size=64",
            )


def _shape(tensors: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    """A source knows shapes without reading, which would cost a second pass."""
    return tensors.slots[name].shape if isinstance(tensors, Source) else tensors[name].shape


def _few(verb: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{verb} {', '.join(names[:3])}{more}"


def _identity(name: str, tensor: torch.Tensor) -> tuple[object, ...]:
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return (name,)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
