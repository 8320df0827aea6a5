"""What travels with weights: configuration, tokenizer, processors, and the folders that they name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING, LONG_NAMES, widest
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.layout import read_config
from soupkit.checkpoint.quantized import SIDE_FILES

DTYPE_KEYS = ("dtype", "torch_dtype")
"""How transformers calls the dtype that weights are loaded in, since version 5 and before."""
NO_MODELS = ("quantization_config",)


class Reconfigured:
    """Stands for a checkpoint whose companions go with an output, with another configuration."""

    def __init__(self, source: Checkpoint, config: Mapping[str, Any]) -> None:
        self.files, self.metadata, self.config_name = source.files, source.metadata, source.config_name
        self.reference, self.directory = source.reference, source.directory
        self.slots, self.config = source.slots, config
        self.companions = [path for path in source.companions if path.name not in SIDE_FILES]


def write_companions(model: Checkpoint, directory: Path, slots: Mapping[str, Slot]) -> None:
    """Copy what travels with `model`; its configuration says the dtype of the tensors that are written, `slots`."""
    copy_files(model.companions, model.directory, directory)
    if model.config_name:
        write_config(directory / model.config_name, with_dtype(model.config, slots, own=model.slots))


def copy_files(files: Iterable[Path], source: Path, directory: Path) -> None:
    """Copy files of a folder `source` to the same places in another."""
    for path in files:
        target = directory / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def follow_dtype(directory: Path, slots: Mapping[str, Slot]) -> None:
    """Make the configuration in a directory say the dtype of the weights that were written there."""
    name, config = read_config(directory)
    if name:
        write_config(directory / name, with_dtype(config, slots, own=slots))


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration, unless the file says the same already."""
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != config:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def with_dtype(config: Mapping[str, Any], slots: Mapping[str, Slot], *, own: Mapping[str, Slot]) -> dict[str, Any]:
    """The configuration with `dtype` and `torch_dtype`, nested ones too, that of the floating tensors `slots`.

    own: the tensors that the configuration was of. Where several dtypes are written, what it says stays as long as it
    is one of them and none is new; else the widest is named, so that nothing is rounded when the model is loaded.
    """
    kinds, before = _kinds(slots), _kinds(own)
    changed = deepcopy(dict(config))
    if kinds:
        _set_dtype(changed, keep=kinds if kinds <= before or len(kinds) == 1 else set(), kind=widest(kinds))
    return changed


def _kinds(slots: Mapping[str, Slot]) -> set[str]:
    return {slot.dtype for slot in slots.values() if slot.dtype in FLOATING} & set(LONG_NAMES.values())


def _set_dtype(config: dict[str, Any], *, keep: set[str], kind: str) -> None:
    for key, value in config.items():
        if isinstance(value, dict) and key not in NO_MODELS:
            _set_dtype(value, keep=keep, kind=kind)
        elif key in DTYPE_KEYS and isinstance(value, str) and value != "auto":
            plain = value.removeprefix("torch.")
            if LONG_NAMES.get(plain) not in keep:
                long = next(name for name, short in LONG_NAMES.items() if short == kind)
                config[key] = value.removesuffix(plain) + long
