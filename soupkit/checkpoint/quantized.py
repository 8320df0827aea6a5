"""Does a checkpoint hold codes in place of weights? The one place that decides, from configuration and
headers alone.

Codes (packed integers, fp8 numbers with scales) must not be averaged, compared or trained as the numbers they
look like. `Dequantized` reads some fp8 layouts as the weights that they mean; everything else is refused by
name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING, Array
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import config_of, name_of, slots_of
from soupkit.errors import CompatibilityError
from soupkit.jsons import JsonView

CONFIG_KEYS = ("quantization_config", "compression_config")
SIDE_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
METHOD_KEYS = ("quant_method", "quant_algo", "quantization_method", "quant_type", "format")
UNNAMED = "an unnamed method"
FP8 = ("F8_E4M3", "F8_E5M2")
FP8_SUFFIXES = ("_scale_inv", "_scale")
"""Scales that `Dequantized` multiplies by."""

RULES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("qweight", "GPTQ or AWQ", ()),
    ("q_weight", "EXL2", ("q_scale", "q_groups", "q_scale_max")),
    ("trellis", "EXL3", ("suh", "svh", "su", "sv")),
    ("B", "Marlin", ("s",)),
    ("codes", "AQLM", ("codebooks",)),
    ("Qidxs", "QuIP#", ()),
    ("indices", "VPTQ", ("centroids.weight", "res_indices")),
    ("dense_weights", "SpQR", ("row_offsets", "in_perm", "col_vals")),
    ("W_q", "HQQ", ()),
    ("weight", "bitsandbytes, 8 bit", ("SCB", "weight.SCB", "weight_format")),
    ("weight", "bitsandbytes, 4 bit", ("weight.absmax", "weight.quant_map", "weight.nested_absmax")),
    ("weight", "HIGGS", ("tables",)),
    ("weight", "MLX", ("biases",)),
    ("weight", "integers with scales", ("scales", "scale", "zeros", "zero_point")),
    ("weight_packed", "compressed-tensors", ()),
    ("_data", "quanto or torchao", ("_scale", "_shift")),
    ("qdata", "torchao", ("scale", "zero_point")),
    ("_weight_qdata", "torchao", ()),
    ("weight_int8", "integers with scales", ("weight_scale", "scales", "scale")),
    ("weight_quantized", "integers with scales", ("weight_scale", "scales", "scale")),
)
"""(last part of the name of an integer tensor, who writes it so, what lies beside it: one of them; none: the
name says it)."""
SCALE_SUFFIXES = (
    "_scale",
    "_scales",
    "_scale_inv",
    "_absmax",
    "_zero_point",
    ".absmax",
    ".scale",
    ".scales",
    ".qscale",
)


@dataclass(frozen=True)
class Quantization:
    """By which method a checkpoint is quantized, and what says so."""

    method: str
    evidence: str


def quantization_of(source: Mapping[str, Array]) -> Quantization | None:
    """What a checkpoint, a view or a plain mapping says of codes in it; None where its tensors are plain
    numbers."""
    said = _by_config(config_of(source), "its configuration")
    if said is None and isinstance(source, Checkpoint):
        said = _by_side_files(source)
    shown = _by_tensors(slots_of(source))
    if said and shown:
        return Quantization(said.method if said.method != UNNAMED else shown.method, shown.evidence)
    return said or shown


def refuse_quantized(sources: Sequence[Mapping[str, Array]]) -> None:
    """Raise CompatibilityError for the first checkpoint that holds codes, naming the method and what says
    so."""
    for position, source in enumerate(sources):
        found = quantization_of(source)
        if found is not None:
            fp8 = scales_of(slots_of(source))
            raise CompatibilityError(
                f"{name_of(source, position)}: is quantized by {found.method} ({found.evidence}): its "
                "tensors are codes, not weights",
                hint="merge by a method (slerp, ties, task-arithmetic, …), which reads such fp8 codes "
                "as weights"
                if fp8
                else "dequantize it first, or use the checkpoint that it was made from; if its weights are "
                "plain after all, take the quantization out of its configuration",
            )


def scales_of(slots: Mapping[str, Slot]) -> dict[str, str]:
    """{name of an fp8 tensor: name of its scales}, for the layouts that can be read as weights."""
    return {
        name: f"{name}{suffix}"
        for name, slot in slots.items()
        if slot.dtype in FP8
        for suffix in FP8_SUFFIXES
        if f"{name}{suffix}" in slots
    }


def _by_config(config: object, where: str) -> Quantization | None:
    """The first quantization that a configuration names, at any depth."""
    for key, value, path in _walk(config):
        if key in CONFIG_KEYS and isinstance(value, Mapping) and (named := _method(value)):
            return Quantization(named, f"{where} says {path}")
    return None


def _walk(node: object, path: str = "") -> Iterator[tuple[str, object, str]]:
    """Every key of nested mappings, outermost first."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        yield str(key), value, f"{path}{key}"
        yield from _walk(value, f"{path}{key}.")


def _method(config: JsonView) -> str | None:
    """The method of a quantization's own configuration; None for an empty one."""
    if not config:
        return None
    named = next((config[key] for key in METHOD_KEYS if isinstance(config.get(key), str)), None)
    bits = next((f"{n} bit" for n in (4, 8) if config.get(f"load_in_{n}bit") is True), None)
    words = [str(word) for word in (named or (UNNAMED if bits is None else "bitsandbytes"), bits) if word]
    return ", ".join(words)


def _by_side_files(source: Checkpoint) -> Quantization | None:
    """What older tools write beside config.json."""
    for name in SIDE_FILES:
        path = source.directory / name
        if path.is_file():
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                config = {}
            inner = config.get("quantization") if isinstance(config, dict) else None
            named = (
                _method(inner if isinstance(inner, dict) else config) if isinstance(config, dict) else None
            )
            return Quantization(named or UNNAMED, f"{name} lies beside it")
    return None


def _by_tensors(slots: Mapping[str, Slot]) -> Quantization | None:
    """What names and dtypes say: integers beside what belongs to codes, or fp8 numbers with scales."""
    scaled = scales_of(slots)
    if scaled:
        name, scale = next(iter(scaled.items()))
        return Quantization("fp8", f"tensor {name!r} holds fp8 codes, with {scale!r} to multiply them by")
    for name, slot in slots.items():
        if ".quant_state." in name:
            return Quantization("bitsandbytes, 4 bit", f"tensor {name!r}")
        if slot.dtype in FP8:
            beside = next((each for each in _scales_beside(name) if each in slots and each != name), None)
            if beside:
                return Quantization("fp8", f"tensor {name!r} beside {beside!r}")
        elif (
            slot.dtype not in FLOATING
            and slot.dtype != "BOOL"
            and slot.shape
            and (found := _coded(name, slots))
        ):
            return found
    return None


def _scales_beside(name: str) -> list[str]:
    """How the scales of an fp8 tensor may be called, beside those that `Dequantized` knows."""
    stem = name.rpartition(".")[0]
    return [
        *(f"{name}{suffix}" for suffix in SCALE_SUFFIXES),
        *(
            f"{stem}.{own}"
            for own in ("scale_weight", "weight_scale", "weight_scale_2", "scales", "scale", "_scale")
        ),
        "scaled_fp8",
    ]


def _coded(name: str, slots: Mapping[str, Slot]) -> Quantization | None:
    """Whether an integer tensor is a code: by its last name and what lies beside it, or by scales named after
    it."""
    place = max(name.rfind("."), name.rfind(":")) + 1
    stem, last = name[:place], name[place:]
    for code, method, others in RULES:
        beside = next((other for other in others if f"{stem}{other}" in slots), None)
        if last == code and (beside or not others):
            return Quantization(
                method, f"integer tensor {name!r}" + (f" beside {stem + beside!r}" if beside else "")
            )
    scale = next((f"{name}{suffix}" for suffix in SCALE_SUFFIXES if f"{name}{suffix}" in slots), None)
    if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in slots:
        return Quantization("MXFP4", f"integer tensor {name!r} beside its scales")
    return (
        Quantization("integers with scales", f"integer tensor {name!r} beside {scale!r}") if scale else None
    )
