"""`extract-lora`: a fine-tuned checkpoint minus its base, as a PEFT adapter."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING, LONG_NAMES, NUMPY_DTYPES, Array
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.output import OutputDirectory
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.checkpoint.tensors import write_tensors
from soupkit.checkpoint.views.adapted import CONFIG, WEIGHTS
from soupkit.errors import RecipeError
from soupkit.events import Advanced, Finished, Report, Started, Table, Warned, Wrote
from soupkit.jsons import Json
from soupkit.manifest import Manifest
from soupkit.merge.families.low_rank import low_rank
from soupkit.recipe.lora import ExtractLora
from soupkit.recipe.parse import recipe_to_json
from soupkit.recipe.settings import name_pattern
from soupkit.stages.inputs.agreed import agreed
from soupkit.stages.outputs.described import describe_inputs, describe_outputs
from soupkit.world import World

COMMAND = "extract-lora"
NOT_MATRICES = re.compile(r"embed|wte|wpe|lm_head")
"""Adapted only when named by --only: PEFT treats embeddings apart."""


@dataclass
class _Extracted:
    """What has been extracted so far."""

    tensors: dict[str, Array] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    rows: list[tuple[str, float, float]] = field(default_factory=list)


def extract_lora(recipe: ExtractLora, world: World, report: Report) -> Json:
    """Factor the change of every matrix, write the adapter, tell what was lost."""
    model, base = open_checkpoint(recipe.ref), open_checkpoint(recipe.base)
    slots = agreed([model, base], recipe, report).slots
    matrices = _matrices(recipe, {name: slot.shape for name, slot in slots.items() if slot.dtype in FLOATING})
    dtype = NUMPY_DTYPES[LONG_NAMES[recipe.dtype]]
    size = sum(recipe.rank * sum(slots[name].shape) * dtype.itemsize for name in matrices)
    if recipe.dry_run:
        return {"plan": {"matrices": len(matrices), "rank": recipe.rank, "bytes_to_write": size}}
    inputs = [*model.files, *base.files]
    with OutputDirectory(recipe.out, overwrite=recipe.overwrite, num_bytes=size, inputs=inputs) as directory:
        found = _extract(recipe, model, base, matrices, dtype, report)
        _write(directory, recipe, base, found)
        manifest = _manifest(recipe, [model, base], directory, found, world)
        manifest.write(directory)
    _tell(found, report)
    report(Wrote(recipe.out, sum(values.nbytes for values in found.tensors.values())))
    return manifest.to_json()


def _matrices(recipe: ExtractLora, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    found = {name for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight")}
    if not recipe.only:
        return {name for name in found if not NOT_MATRICES.search(name)}
    patterns = [name_pattern(text) for text in recipe.only]
    chosen = {name for name in found if any(pattern.search(name) for pattern in patterns)}
    if not chosen:
        raise RecipeError(
            f"only: {', '.join(recipe.only)} matches no matrix", hint="soupkit inspect REF --tensors"
        )
    return chosen


def _extract(
    recipe: ExtractLora,
    model: Checkpoint,
    base: Checkpoint,
    matrices: set[str],
    dtype: DTypeLike,
    report: Report,
) -> _Extracted:
    found = _Extracted()
    report(Started("factoring", len(model.slots), "tensors"))
    for name, slot in model.slots.items():
        if slot.dtype in FLOATING:
            change = model[name].astype(np.float64) - base[name].astype(np.float64)
            if change.any():
                _take(recipe, name, change, model[name], name in matrices, dtype, found)
        elif not np.array_equal(model[name], base[name]):
            found.dropped.append(name)  # an adapter holds no integers
        report(Advanced("factoring", 1, name))
    report(Finished("factoring"))
    return found


def _take(
    recipe: ExtractLora,
    name: str,
    change: Array,
    whole: Array,
    is_matrix: bool,
    dtype: DTypeLike,
    found: _Extracted,
) -> None:
    module = name.removesuffix(".weight").removesuffix(".bias")
    if is_matrix:
        factors = low_rank(change, recipe.rank, seed=recipe.seed)
        found.tensors[f"base_model.model.{module}.lora_A.weight"] = factors.a.astype(dtype)
        found.tensors[f"base_model.model.{module}.lora_B.weight"] = factors.b.astype(dtype)
        found.adapted.append(module)
        found.rows.append((name, float(np.linalg.norm(change)), factors.error))
    elif recipe.others == "save" and module not in found.adapted:
        found.tensors[f"base_model.model.{name}"] = whole
        found.saved.append(module)
    else:
        found.dropped.append(name)


def _write(directory: Path, recipe: ExtractLora, base: Checkpoint, found: _Extracted) -> None:
    """The files that PEFT reads: lora_alpha = r, so that the product is the change itself."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base.reference,
        "r": recipe.rank,
        "lora_alpha": recipe.rank,
        "target_modules": sorted(found.adapted),
        "modules_to_save": sorted(set(found.saved)) or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tensors(directory, found.tensors, file_name=WEIGHTS)
    head = "---\nlibrary_name: peft\ntags:\n- lora\n- soupkit\n---"
    text = f"{head}\n\n# {recipe.out.name}\n\nMade with `soupkit {COMMAND}`.\n"
    (directory / "README.md").write_text(text, encoding="utf-8")


def _manifest(
    recipe: ExtractLora, checkpoints: list[Checkpoint], directory: Path, found: _Extracted, world: World
) -> Manifest:
    contents = [content_hash(checkpoint, threads=world.num_threads) for checkpoint in checkpoints]
    content = content_hash(Checkpoint(directory / WEIGHTS), threads=world.num_threads)
    return Manifest(
        command=COMMAND,
        recipe=recipe_to_json(recipe),
        inputs=describe_inputs(checkpoints, recipe.out, contents),
        outputs=describe_outputs(directory, content),
        notes={
            "relative_error": _overall(found),
            "errors": {name: error for name, _, error in found.rows},
            "dropped": found.dropped,
        },
    )


def _overall(found: _Extracted) -> float:
    """‖change − B·A‖ / ‖change‖ over all adapted matrices."""
    total = sum(norm**2 for _, norm, _ in found.rows)
    return float((sum((norm * error) ** 2 for _, norm, error in found.rows) / total) ** 0.5) if total else 0.0


def _tell(found: _Extracted, report: Report) -> None:
    worst = sorted(found.rows, key=lambda row: -row[2])[:10]
    caption = f"{len(found.adapted)} matrices; over all of them {_overall(found):.4f}"
    report(Table("what the rank leaves out", ("tensor", "‖change‖", "relative error"), tuple(worst), caption))
    if found.dropped:
        report(
            Warned(
                f"{len(found.dropped)} changed tensors are left out, for example {found.dropped[0]} "
                "(--others save keeps them whole)"
            )
        )
