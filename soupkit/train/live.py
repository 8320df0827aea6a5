"""The tensors of a model that is being trained: looked up by name, sorted by what changes them, copied as a
state."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from soupkit.errors import TaskError
from soupkit.merge.mixture import BATCH_NORM_STATISTICS

Buffers = Literal["average", "copy", "refresh"]
Getter = Callable[[], Tensor]


def copied_state(model: nn.Module) -> dict[str, Any]:
    """A model's state_dict() that shares nothing with it: tensors that are one there are one in the copy.

    Extra state is copied too, and the versions of modules (`_metadata`) go along, so that it loads strictly.
    """
    state: OrderedDict[str, Any] = OrderedDict()
    memo: dict[int, Tensor] = {}
    live = model.state_dict(keep_vars=True)
    for name, value in live.items():
        if isinstance(value, Tensor):
            state[name] = memo.setdefault(id(value), value.detach().clone())
        else:
            state[name] = copy.deepcopy(value)
    if hasattr(live, "_metadata"):
        state._metadata = copy.deepcopy(live._metadata)  # type: ignore[attr-defined]
    return state


def getters_of(source: nn.Module | Mapping[str, Tensor]) -> Iterator[tuple[str, Getter]]:
    """Every tensor of the state, once even if tied. `Module.to` replaces buffers, so they are looked up when
    read."""
    if not isinstance(source, nn.Module):
        yield from ((name, partial(source.__getitem__, name)) for name in source)
        return
    seen = set()
    for prefix, module in source.named_modules():
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                name = f"{prefix}.{key}".lstrip(".")
                if (
                    tensor is not None
                    and key not in module._non_persistent_buffers_set
                    and id(tensor) not in seen
                ):
                    seen.add(id(tensor))
                    yield name, partial(own.__getitem__, key)


def split_names(
    source: nn.Module | Mapping[str, Tensor],
    getters: Mapping[str, Getter],
    buffers: Buffers,
    ignore: Sequence[str],
) -> tuple[list[str], list[str]]:
    """The averaged names (floating, complex): those that only the optimizer changes, and buffers of forward
    passes.

    Codes of one byte (fp8) are as integers. A pattern means a tensor by any of its names. Raises TaskError
    for one that means none, and for tensors that cannot be written, before anything is trained.
    """
    names = _all_names(source, getters)
    patterns = [re.compile(pattern) for pattern in ignore]
    for pattern in patterns:
        if not any(pattern.search(each) for own in names.values() for each in own):
            raise TaskError(
                f"ignore has {pattern.pattern!r}, which matches no tensor of the model",
                hint=f"names are as {next(iter(getters), 'weight')}",
            )
    floating = [
        name
        for name, get in getters.items()
        if (get().is_floating_point() or get().is_complex())
        and get().dtype.itemsize > 1
        and not any(pattern.search(each) for pattern in patterns for each in names[name])
    ]
    for name in floating:
        _refuse_unwritable(name, getters[name]())
    weights = [name for name in floating if not is_buffer(source, name)]
    changing = [name for name in floating if is_buffer(source, name)]
    return weights, changing if buffers == "average" else []


def _all_names(
    source: nn.Module | Mapping[str, Tensor], getters: Mapping[str, Getter]
) -> dict[str, list[str]]:
    """{name: all that its tensor is called}."""
    if not isinstance(source, nn.Module):
        return {name: [name] for name in getters}
    found: dict[int, list[str]] = {}
    for named in (source.named_parameters, source.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            found.setdefault(id(tensor), []).append(name)
    return {name: found[id(get())] for name, get in getters.items()}


def _refuse_unwritable(name: str, tensor: Tensor) -> None:
    """Raise TaskError for a tensor that an average could not be swapped into."""
    if is_lazy(tensor):
        return
    repeated = any(size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if not stride)
    if repeated or tensor.is_conj():
        what = (
            "repeats its elements in memory (expand)" if repeated else "is a conjugate that was not computed"
        )
        raise TaskError(
            f"{name} {what}: no average can be written into it",
            hint="register tensor.clone().resolve_conj() in its place",
        )


def is_buffer(source: nn.Module | Mapping[str, Tensor], name: str) -> bool:
    """Whether a forward pass may change the tensor of this name."""
    if not isinstance(source, nn.Module):
        return name.rpartition(".")[2] in (*BATCH_NORM_STATISTICS, "num_batches_tracked")
    module, _, key = name.rpartition(".")
    return key in source.get_submodule(module)._buffers


class Guard:
    """A hook that refuses to save a model, or a part of it; copies that are made meanwhile may be saved."""

    def __init__(self, active: bool = True) -> None:
        self.active = active

    def __call__(self, *_: Any) -> None:
        if self.active:
            raise TaskError(
                "the model holds its average now: saved, it would pass for the weights that are trained",
                hint="save averaged_state(), or leave `swapped()` first",
            )

    def __deepcopy__(self, _: Any) -> Guard:
        return Guard(active=False)

    def __reduce__(self) -> tuple[type[Guard], tuple[bool]]:
        self()
        return Guard, (False,)
