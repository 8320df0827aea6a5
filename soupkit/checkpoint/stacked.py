"""Frankenmerges: a model made of layer ranges of other models, as a lazy mapping."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint, read_chunk, slots_of
from soupkit.checkpoint.dtypes import Array
from soupkit.errors import CompatibilityError, RecipeError

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
_BEFORE = re.compile(r"(^|[._])(embed\w*|\w*embeddings?|wte|wpe|stem|conv1|cls_token|class_embedding|ln_pre)([._]|$)")
"""Names of what stands before the layers; anything else outside them stands after."""


@dataclass(frozen=True)
class Part:
    """Layers start … stop − 1 of a checkpoint."""

    source: Mapping[str, Array]
    start: int
    stop: int


class Stacked(Mapping[str, Array]):
    """The layers of some parts, one after the other and numbered anew; what stands before the layers (embeddings) comes
    from the first part's checkpoint, what stands after from the last's."""

    def __init__(self, parts: Sequence[Part], *, reference: str, stack: str | None = None) -> None:
        self.reference = reference
        self.stack = main_stack(parts[0].source) if stack is None else stack
        self.config: Mapping[str, Any] = getattr(parts[0].source, "config", {})
        self.num_layers = sum(part.stop - part.start for part in parts)
        self.places = _places(parts, self.stack)
        self.slots = {name: slots_of(source)[own] for name, (source, own) in self.places.items()}
        self.stored = {
            name: (getattr(source, "stored", None) or slots_of(source))[own]
            for name, (source, own) in self.places.items()
        }

    def __getitem__(self, name: str) -> Array:
        source, own = self.places[name]
        return source[own]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        source, own = self.places[name]
        read_chunk(source, own, start, out)


def _places(parts: Sequence[Part], stack: str) -> dict[str, tuple[Mapping[str, Array], str]]:
    places: dict[str, tuple[Mapping[str, Array], str]] = {}
    for part, outside in ((parts[0], True), (parts[-1], False)):
        for name in part.source:
            if layer_in(name, stack) is None and bool(_BEFORE.search(name)) is outside:
                places[name] = (part.source, name)
    offset = 0
    for part in parts:
        found = {layer_in(name, stack) for name in part.source}
        missing = [layer for layer in range(part.start, part.stop) if layer not in found]
        if missing or part.start >= part.stop:
            raise CompatibilityError(
                f"{getattr(part.source, 'reference', 'a checkpoint')}: has no layers {part.start} to {part.stop - 1} "
                f"of {stack!r}",
                hint=f"its layers are 0 to {max((layer for layer in found if layer is not None), default=-1)}",
            )
        for name in part.source:
            layer = layer_in(name, stack)
            if layer is not None and part.start <= layer < part.stop:
                renamed = f"{stack}.{layer - part.start + offset}{name[len(f'{stack}.{layer}') :]}"
                places[renamed] = (part.source, name)
        offset += part.stop - part.start
    return places


def layer_in(name: str, stack: str) -> int | None:
    """The layer of a stack that a tensor belongs to; None outside it."""
    if not name.startswith(f"{stack}."):
        return None
    number = name[len(stack) + 1 :].split(".")[0]
    return int(number) if number.isdigit() else None


def main_stack(source: Mapping[str, Array]) -> str:
    """The prefix under which most layers are numbered. Raises RecipeError when two are alike or there is none."""
    layers: dict[str, set[int]] = {}
    for name in source:
        parts = name.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdigit()), 0)
        if place:
            layers.setdefault(".".join(parts[:place]), set()).add(int(parts[place]))
    ranked = Counter({stack: len(numbers) for stack, numbers in layers.items()}).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        known = ", ".join(f"{stack} ({count})" for stack, count in ranked) or "none"
        raise RecipeError(
            f"which layers to stack is not clear (numbered: {known})", hint="say it: --stack model.layers"
        )
    return ranked[0][0]


class Reconfigured:
    """Stands for a checkpoint whose configuration and tokenizer go with an output, with a config.json of its own."""

    def __init__(self, source: Checkpoint, config: Mapping[str, Any]) -> None:
        self.files, self.metadata, self.config_name = source.files, source.metadata, source.config_name
        self.reference = source.reference
        self.config = config
        self.companions = source.companions
        if source.config_name and self.config != source.config:
            folder = Path(tempfile.mkdtemp(prefix="soupkit-config-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            changed = folder / source.config_name
            changed.write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
            self.companions = [changed if path.name == source.config_name else path for path in source.companions]


def with_depth(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The configuration with another number of layers, and lists with one entry per layer dropped as unknown."""
    depth = next((config[key] for key in DEPTH_KEYS if isinstance(config.get(key), int)), None)
    changed = {
        key: num_layers if key in DEPTH_KEYS and isinstance(value, int) else value for key, value in config.items()
    }
    per_layer = [key for key, value in config.items() if isinstance(value, list) and depth and len(value) == depth]
    return {key: value for key, value in changed.items() if key not in per_layer or depth == num_layers}
