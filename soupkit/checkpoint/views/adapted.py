"""LoRA adapters (PEFT directories) as full checkpoints: W + scale · B·A, made row by row when it is read.

W' = W + (lora_alpha / r) B A (Hu et al. 2022, arXiv:2106.09685, eq. 3); with rank stabilization lora_alpha /
√r (Kalajdzievski 2023, arXiv:2312.03732). Products are merged, never factors: the mean of two products is not
the product of two means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array, widest
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import Source, read_chunk
from soupkit.checkpoint.views.adapter_config import MERGE, base_of, read_adapter_config
from soupkit.checkpoint.views.view import View, checkpoint_of, record_of
from soupkit.errors import CheckpointError, CompatibilityError, brief
from soupkit.jsons import Json, JsonView

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = re.compile(r"^(base_model\.model\.|base_model\.)")
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?:default|weight))*$"
)
_BIAS = re.compile(r"(?P<module>.+)\.lora_B(?:\.default)?\.bias$")
_OTHER = re.compile(
    r"(^|[._])(lora|ia3|hada|lokr|oft|boft|vera|token_adapter|trainable_tokens|parametrizations)([_.]|$)"
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|tok_embeddings|word_embeddings|wte|shared|embed_in)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer)\.weight$")
_ROWS = 1 << 15
LONGEST_NAME = 255
"""Of a module; patterns of ranks are compared with it, at a cost that is a power of its length."""
Number = TypeVar("Number")


@dataclass(frozen=True)
class Factors:
    """The change of one tensor: scale · B·A, for a tensor seen as rows × columns. transposed: A and B are of
    Wᵀ."""

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
    """What an adapter directory holds: changes of tensors, and tensors that it replaces (modules_to_save,
    biases)."""

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
    """Read an adapter. Raises CheckpointError for one that is no LoRA, or that soupkit cannot merge
    exactly."""
    directory = path.parent if path.is_file() else path
    config = read_adapter_config(directory / CONFIG)
    weights = Checkpoint(directory / WEIGHTS, reference=str(directory / WEIGHTS))
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    biases: dict[str, str] = {}
    for name in weights:
        plain = _PREFIX.sub("", name)
        if match := _FACTOR.fullmatch(plain):
            factors.setdefault(match["module"], {})[match["side"] + (match["embedding"] or "")] = name
        elif match := _BIAS.fullmatch(plain):
            biases[match["module"]] = name
        elif _OTHER.search(plain):
            raise CheckpointError(f"{weights.reference}: {name!r} is no factor of a plain LoRA", hint=MERGE)
        else:
            replaced[plain.replace(".modules_to_save.default", "").replace(".base_layer.", ".")] = name
    changes = {
        f"{module}.weight": _factors(module, names, weights, config) for module, names in factors.items()
    }
    _add_biases(changes, biases, weights)
    return Adapter(str(path), base_of(config), weights, changes, replaced)


def base_mismatch(adapter: Adapter, base: Source) -> str | None:
    """What to tell when an adapter is merged into another base than the one that it names; else None.

    One on this disk is told by its place, any other by its last name. The two may still fit: stacking an
    adapter on another fine-tune of its base is common.
    """
    named = Path(adapter.base_reference).expanduser()
    if not adapter.base_reference:
        return None
    under = checkpoint_of(base)
    if not named.exists() or under is None or under.remote is not None:
        if _last_name(adapter.base_reference) == _last_name(base.reference):
            return None
    else:
        here = {under.path.resolve(), under.directory.resolve(), *(file.resolve() for file in under.files)}
        if named.resolve() in here or (named / under.files[0].name).resolve() in here:
            return None
    return (
        f"{adapter.reference}: names {adapter.base_reference} as its base, and is merged into "
        f"{base.reference}"
    )


def _last_name(reference: str) -> str:
    return reference.rstrip("/").rpartition("/")[2].partition("@")[0]


def _add_biases(changes: dict[str, Factors], biases: Mapping[str, str], weights: Checkpoint) -> None:
    """lora_bias: B adds a bias of its own, scaled like the product."""
    for module, name in biases.items():
        if f"{module}.weight" not in changes:
            raise CheckpointError(f"{weights.reference}: {name!r} has no factors beside it", hint=MERGE)
        bias = weights[name].reshape(-1, 1)
        changes[f"{module}.bias"] = Factors(
            np.ones((1, 1), bias.dtype), bias, changes[f"{module}.weight"].scale
        )


def _factors(module: str, names: Mapping[str, str], weights: Checkpoint, config: JsonView) -> Factors:
    embedding = "Aembedding_" in names
    sides = [f"{side}embedding_" if embedding else side for side in "AB"]
    if set(names) != set(sides):
        raise CheckpointError(
            f"{weights.reference}: {module!r} has {sorted(names.values())}, expected lora_A and lora_B"
        )
    if len(module) > LONGEST_NAME:
        raise CheckpointError(f"{weights.reference}: {brief(module)} is too long for the name of a module")
    a, b = (weights[names[side]] for side in sides)
    if len(a) != b.shape[1]:
        raise CheckpointError(
            f"{weights.reference}: {module!r}: ranks {len(a)} of lora_A and {b.shape[1]} of lora_B differ"
        )
    rank = int(_by_pattern(config.get("rank_pattern") or {}, module, config.get("r", len(a))))
    alpha = float(_by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", rank)))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Factors(a, b, scale, transposed=embedding or bool(config.get("fan_in_fan_out")))


def _by_pattern(patterns: Mapping[str, Number], module: str, default: Number) -> Number:
    """PEFT's rank_pattern and alpha_pattern: the first pattern that the end of the module's name matches."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


class Adapted(View):
    """A base checkpoint with an adapter merged into it, lazily.

    Tensors that the adapter changes read as float32 at least, so that the change is not rounded away before a
    merge. Memory: the factors, and one block of rows. Cost: 2 · rank operations per element that is read.
    """

    def __init__(self, base: Source, adapter: Adapter) -> None:
        self.base, self.adapter = base, adapter
        self._changes = {self._target(name): factors for name, factors in adapter.changes.items()}
        self._replaced = {self._target(name): source for name, source in adapter.replaced.items()}
        slots = {name: self._slot(name) for name in base.slots}
        super().__init__(base, adapter.weights, reference=adapter.reference, slots=slots, stored=base.slots)

    def record(self) -> Json:
        """The adapter, beside its base."""
        return {**record_of(self.base), "adapter": record_of(self.adapter.weights)}

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        source: Source = self.adapter.weights if name in self._replaced else self.base
        own = self._replaced.get(name, name)
        if name not in self._changes:
            read_chunk(source, own, start, out)
            return
        plain = np.empty(out.size, NUMPY_DTYPES[source.slots[own].dtype])
        read_chunk(source, own, start, plain)
        out[:] = plain.astype(np.float64) + self._change(name, start, out.size)

    def _change(self, name: str, start: int, size: int) -> Array:
        """Elements of B·A. Always computed in the same blocks of rows, so that the bits do not depend on who
        asks."""
        factors = self._changes[name]
        rows, columns = factors.shape
        block = max(1, _ROWS // columns)
        first, last = start // columns // block * block, -(-(start + size) // columns)
        parts = [factors.rows(row, min(row + block, rows)) for row in range(first, last, block)]
        flat: Array = np.concatenate(parts).reshape(-1)
        return flat[start - first * columns :][:size]

    def _target(self, name: str) -> str:
        """The base's name for what the adapter changes. Raises CompatibilityError for what it does not
        have."""
        ties = self.base.ties
        if name in ties or name in ties.values() or self._is_tied(name):
            raise CompatibilityError(
                f"{self.adapter.reference}: changes {name!r}, which {self.base.reference} ties to another "
                "tensor: head and embedding share their numbers there, and the adapter is of one of them",
                hint="untie them first: save the base with tie_word_embeddings false and both tensors, and "
                "give that as --base (a merge by peft changes both)",
            )
        if name not in self.base.slots:
            raise CompatibilityError(
                f"{self.adapter.reference}: changes {name!r}, which {self.base.reference} does not have",
                hint=self._base_hint(),
            )
        return name

    def _is_tied(self, name: str) -> bool:
        """Whether the configuration of the base says that a head is its embedding."""
        config = self.base.config
        nested = [config, *(value for value in config.values() if isinstance(value, dict))]
        says = next((each["tie_word_embeddings"] for each in nested if "tie_word_embeddings" in each), None)
        if _HEAD.search(name):
            return says is True or (says is None and name not in self.base.slots and bool(config))
        generates = re.search(
            "CausalLM|LMHead|ConditionalGeneration|MaskedLM", str(config.get("architectures"))
        )
        return says is True and bool(generates) and bool(_EMBEDDING.search(name))

    def _base_hint(self) -> str:
        """What may help when a tensor of the adapter does not fit: its own base, unless that is what was
        given."""
        named = self.adapter.base_reference
        if not named or base_mismatch(self.adapter, self.base) or not Path(named).expanduser().exists():
            return f"it was trained on {named or 'another model'}; give that as --base"
        return f"the base stores its weights under other names or fused than the adapter's; {MERGE}"

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
                hint=self._base_hint(),
            )
