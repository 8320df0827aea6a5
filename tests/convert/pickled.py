"""What training programs leave behind: pickles of every kind that the tests convert."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def weights(seed: int = 0, *, legacy: bool = False) -> dict[str, torch.Tensor]:
    """A small state dict with every kind of tensor that models have; torch before 1.6 had no float8."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(4, 3, generator=generator)
    return {
        "layer.weight": draw,
        "layer.bias": torch.rand(4, generator=generator),
        "half": draw.half(),
        "brain": draw.bfloat16(),
        **({} if legacy else {"eight": draw.to(torch.float8_e4m3fn)}),
        "mask": draw > 0.5,
        "bn.num_batches_tracked": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "transposed": draw.t(),
    }


def save(value: Any, path: Path, *, legacy: bool = False) -> Path:
    """torch.save, also in the form of torch < 1.6."""
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@contextmanager
def foreign_class(full_name: str, base: type = object) -> Iterator[Any]:
    """A class in a module that exists only while a file is written: reading it back cannot import it."""
    module_name, _, name = full_name.rpartition(".")
    made = []
    for end in range(1, module_name.count(".") + 2):
        parent = ".".join(module_name.split(".")[:end])
        if parent not in sys.modules:
            sys.modules[parent] = types.ModuleType(parent)
            made.append(parent)
    module = sys.modules[module_name]
    kind = type(name, (base,), {"__module__": module_name})
    setattr(module, name, kind)
    try:
        yield kind
    finally:
        delattr(module, name)
        for parent in made:
            del sys.modules[parent]


class Evil:
    """Pickles as a call: `function(*arguments)` runs in whoever unpickles it with the pickle module."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def plain_pickle(value: Any, path: Path, *, protocol: int = 2) -> Path:
    """A pickle that torch.save has nothing to do with."""
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path
