"""What travels with weights: configuration, tokenizer, processors, and the folders that they name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path

from soupkit.checkpoint.config.pipelines import component_folders
from soupkit.checkpoint.dtypes import FLOATING, LONG_NAMES, Array, widest
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.layout import CONFIG_NAMES, read_config
from soupkit.checkpoint.quantized import SIDE_FILES
from soupkit.checkpoint.source import Source, folder_of, read_chunk
from soupkit.checkpoint.views.view import View, record_of
from soupkit.jsons import Json, JsonView

DTYPE_KEYS = ("dtype", "torch_dtype")
"""How transformers calls the dtype that weights are loaded in, since version 5 and before."""
NO_MODELS = ("quantization_config",)


class Reconfigured(View):
    """A source with another configuration, that of plain weights: companions that speak of codes stay
    behind."""

    def __init__(self, source: Source, config: JsonView) -> None:
        super().__init__(source, config=config, leaving=SIDE_FILES)

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        read_chunk(self.source, name, start, out)

    def record(self) -> Json:
        """That of its source, and the configuration."""
        return {**record_of(self.source), "config": self.config}


def config_name(model: Source) -> str | None:
    """Which of a source's companions is its configuration; None where none is."""
    names = {path.name for path in model.companions}
    return next((name for name in CONFIG_NAMES if name in names), None)


def write_companions(model: Source, directory: Path, slots: Mapping[str, Slot]) -> None:
    """Copy what travels with `model`; its configuration says the dtype of the tensors that are written,
    `slots`."""
    companions = model.companions
    if companions:
        copy_files(companions, folder_of(model), directory)
    follow_dtype_of_parts(directory, slots)
    if name := config_name(model):
        write_config(directory / name, with_dtype(model.config, slots, own=model.slots))


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


def follow_dtype_of_parts(directory: Path, slots: Mapping[str, Slot]) -> None:
    """The same for the components of a pipeline, each of its own tensors."""
    for name in component_folders(directory):
        own = {each: slot for each, slot in slots.items() if each.startswith(f"{name}/")}
        follow_dtype(directory / name, own)


def write_config(path: Path, config: JsonView) -> None:
    """Write a configuration, unless the file says the same already."""
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != config:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def with_dtype(config: JsonView, slots: Mapping[str, Slot], *, own: Mapping[str, Slot]) -> Json:
    """The configuration with `dtype` and `torch_dtype`, nested ones too, that of the floating tensors
    `slots`.

    own: the tensors that the configuration was of. Where several dtypes are written, what it says stays as
    long as it is one of them and none is new; else the widest is named, so that nothing is rounded when the
    model is loaded.
    """
    kinds, before = _kinds(slots), _kinds(own)
    changed = deepcopy(dict(config))
    if kinds:
        _set_dtype(changed, keep=kinds if kinds <= before or len(kinds) == 1 else set(), kind=widest(kinds))
    return changed


def _kinds(slots: Mapping[str, Slot]) -> set[str]:
    return {slot.dtype for slot in slots.values() if slot.dtype in FLOATING} & set(LONG_NAMES.values())


def _set_dtype(config: Json, *, keep: set[str], kind: str) -> None:
    for key, value in config.items():
        if isinstance(value, dict) and key not in NO_MODELS:
            _set_dtype(value, keep=keep, kind=kind)
        elif key in DTYPE_KEYS and isinstance(value, str) and value != "auto":
            plain = value.removeprefix("torch.")
            if LONG_NAMES.get(plain) not in keep:
                long = next(name for name, short in LONG_NAMES.items() if short == kind)
                config[key] = value.removesuffix(plain) + long
