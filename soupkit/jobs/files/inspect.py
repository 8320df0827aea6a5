"""`inspect`: look at checkpoints without torch."""

from __future__ import annotations

from soupkit.checkpoint.reference import open_references
from soupkit.events import Cell, Report, Table
from soupkit.jsons import Json
from soupkit.recipe.inspect import Inspect
from soupkit.stages.inputs.shown import describe
from soupkit.world import World

Rows = tuple[tuple[Cell, ...], ...]


def inspect(recipe: Inspect, _world: World, report: Report) -> Json:
    """Describe every checkpoint from its headers."""
    described = []
    for checkpoint in open_references(recipe.refs):
        values = describe(checkpoint)
        rows: Rows = tuple(
            (key.replace("_", " "), _shown(value)) for key, value in values.items() if key != "tensor_list"
        )
        report(Table(checkpoint.reference, ("", ""), rows))
        tensors = [
            [name, spec.dtype, list(spec.shape), spec.file.name] for name, spec in checkpoint.specs.items()
        ]
        if recipe.tensors:
            cells: Rows = tuple(
                (str(name), str(dtype), str(shape), str(file)) for name, dtype, shape, file in tensors
            )
            report(Table("", ("tensor", "dtype", "shape", "file"), cells))
        described.append({"reference": checkpoint.reference, **values, "tensor_list": tensors})
    return {"checkpoints": described}


def _shown(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value[:8])) + (f", … {len(value)} in all" if len(value) > 8 else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")
