"""LoRA adapters (PEFT directories) as full checkpoints: W + scale · B·A, made row by row when it is read.

W' = W + (lora_alpha / r) B A (Hu et al. 2022, arXiv:2106.09685, eq. 3); with rank stabilization lora_alpha / √r
(Kalajdzievski 2023, arXiv:2312.03732). Products are merged, never factors: the mean of two products is not the product
of two means.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint, read_chunk, tied_names
from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array, widest
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.view import View
from soupkit.errors import CheckpointError, CompatibilityError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = re.compile(r"^(base_model\.model\.|base_model\.)")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?:default|weight))*$")
_ROWS = 1 << 15


@dataclass(frozen=True)
class Factors:
    """The change of one tensor: scale · B·A, for a tensor seen as rows × columns. transposed: A and B are of Wᵀ."""

    a: Array
    b: Array
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the change."""
        rows, columns = self.b.shape[0], math.prod(self.a.shape[1:])
        return (columns, rows) if self.transposed else (rows, columns)

    def rows(self, start: int, stop: int) -> Array:
        """Some rows of the change, in float64."""
        a, b = self.a.reshape(len(self.a), -1), self.b.reshape(len(self.b), -1)
        left, right = (a.T, b.T) if self.transposed else (b, a)
        product: Array = (left[start:stop].astype(np.float64) @ right.astype(np.float64)) * self.scale
        return product


@dataclass(frozen=True)
class Adapter:
    """What an adapter directory holds: changes of tensors, and tensors that it replaces (modules_to_save, biases)."""

    reference: str
    base_reference: str
    weights: Checkpoint
    changes: Mapping[str, Factors]
    replaced: Mapping[str, str]


def is_adapter(path: Path) -> bool:
    """Whether a path is a PEFT directory, or the weights file of one."""
    directory = path.parent if path.is_file() else path
    return (directory / CONFIG).is_file() and (path.is_dir() or path.name == WEIGHTS)


def open_adapter(path: Path) -> Adapter:
    """Read an adapter. Raises CheckpointError for one that is no LoRA, or that soupkit cannot merge exactly."""
    directory = path.parent if path.is_file() else path
    config = _read_config(directory / CONFIG)
    weights = Checkpoint(directory / WEIGHTS, reference=str(directory / WEIGHTS))
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in weights:
        plain = _PREFIX.sub("", name)
        match = _FACTOR.fullmatch(plain)
        if match:
            factors.setdefault(match["module"], {})[match["side"] + (match["embedding"] or "")] = name
        else:
            replaced[plain.replace(".modules_to_save.default", "").replace(".base_layer.", ".")] = name
    changes = {f"{module}.weight": _factors(module, names, weights, config) for module, names in factors.items()}
    return Adapter(str(path), str(config.get("base_model_name_or_path") or ""), weights, changes, replaced)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA" or config.get("use_dora"):
        kind = "DoRA" if kind == "LORA" else kind
        raise CheckpointError(
            f"{path}: is an adapter of type {kind}, soupkit merges LoRA",
            hint="merge it into its base model first (peft: merge_and_unload) and save that",
        )
    return dict(config)


def _factors(module: str, names: Mapping[str, str], weights: Checkpoint, config: Mapping[str, Any]) -> Factors:
    embedding = "Aembedding_" in names
    sides = [f"{side}embedding_" if embedding else side for side in "AB"]
    if set(names) != set(sides):
        raise CheckpointError(
            f"{weights.reference}: {module!r} has {sorted(names.values())}, expected lora_A and lora_B"
        )
    a, b = (weights[names[side]] for side in sides)
    if len(a) != b.shape[1]:
        raise CheckpointError(
            f"{weights.reference}: {module!r}: ranks {len(a)} of lora_A and {b.shape[1]} of lora_B differ"
        )
    rank = int(_by_pattern(config.get("rank_pattern"), module, config.get("r", len(a))))
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank)))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Factors(a, b, scale, transposed=embedding or bool(config.get("fan_in_fan_out")))


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rank_pattern and alpha_pattern: the first pattern that the end of the module's name matches."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


class Adapted(View):
    """A base checkpoint with an adapter merged into it, lazily.

    Tensors that the adapter changes read as float32 at least, so that the change is not rounded away before a merge.
    Memory: the factors, and one block of rows. Cost: 2 · rank operations per element that is read.
    """

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self.base, self.adapter = base, adapter
        self.reference = adapter.reference
        self.config = base.config
        self.specs = base.specs
        self.stored = base.slots
        ties = tied_names(base)
        self._changes = {self._target(name, ties): factors for name, factors in adapter.changes.items()}
        self._replaced = {self._target(name, ties): source for name, source in adapter.replaced.items()}
        self.slots = {name: self._slot(name) for name in base.slots}

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        source, own = (self.adapter.weights, self._replaced[name]) if name in self._replaced else (self.base, name)
        if name not in self._changes:
            read_chunk(source, own, start, out)
            return
        plain = np.empty(out.size, NUMPY_DTYPES[source.slots[own].dtype])
        read_chunk(source, own, start, plain)
        out[:] = plain.astype(np.float64) + self._change(name, start, out.size)

    def _change(self, name: str, start: int, size: int) -> Array:
        """Elements of B·A. Always computed in the same blocks of rows, so that the bits do not depend on who asks."""
        factors = self._changes[name]
        rows, columns = factors.shape
        block = max(1, _ROWS // columns)
        first, last = start // columns // block * block, -(-(start + size) // columns)
        parts = [factors.rows(row, min(row + block, rows)) for row in range(first, last, block)]
        flat: Array = np.concatenate(parts).reshape(-1)
        return flat[start - first * columns :][:size]

    def _target(self, name: str, ties: Mapping[str, str]) -> str:
        """The base's name for what the adapter changes."""
        found = ties.get(name, name)
        if found not in self.base.slots:
            raise CompatibilityError(
                f"{self.adapter.reference}: changes {name!r}, which {self.base.reference} does not have",
                hint=f"it was trained on {self.adapter.base_reference or 'another model'}; give that as --base",
            )
        return found

    def _slot(self, name: str) -> Slot:
        slot = self.base.slots[name]
        if name in self._replaced:
            found = self.adapter.weights.slots[self._replaced[name]]
            self._check_shape(name, found.shape, slot.shape)
            slot = found
        if name not in self._changes:
            return slot
        rows, columns = self._changes[name].shape
        self._check_shape(name, (rows, columns), (slot.shape[0], math.prod(slot.shape[1:])))
        return slot._replace(dtype=widest({slot.dtype, "F32"}) if slot.dtype in FLOATING else "F32")

    def _check_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise CompatibilityError(
                f"{self.adapter.reference}: changes {name!r} as {list(found)}, the base has {list(expected)}",
                hint=f"it was trained on {self.adapter.base_reference or 'another model'}; give that as --base",
            )
