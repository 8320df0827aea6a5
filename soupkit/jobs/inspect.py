"""`inspect`: look at checkpoints without torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

from soupkit.checkpoint.checkpoint import Checkpoint, tied_names
from soupkit.checkpoint.compatible import architecture
from soupkit.checkpoint.quantized import quantization_of
from soupkit.checkpoint.reference import open_references
from soupkit.events import Cell, Report, Table
from soupkit.manifest import Manifest
from soupkit.recipe.inspect import Inspect
from soupkit.world import World

Rows = tuple[tuple[Cell, ...], ...]


def inspect(recipe: Inspect, _world: World, report: Report) -> dict[str, Any]:
    """Describe every checkpoint from its headers."""
    described = []
    for checkpoint in open_references(recipe.refs):
        values = describe(checkpoint)
        rows: Rows = tuple(
            (key.replace("_", " "), _shown(value)) for key, value in values.items() if key != "tensor_list"
        )
        report(Table(checkpoint.reference, ("", ""), rows))
        tensors = [[name, spec.dtype, list(spec.shape), spec.file.name] for name, spec in checkpoint.specs.items()]
        if recipe.tensors:
            cells: Rows = tuple((str(name), str(dtype), str(shape), str(file)) for name, dtype, shape, file in tensors)
            report(Table("", ("tensor", "dtype", "shape", "file"), cells))
        described.append({"reference": checkpoint.reference, **values, "tensor_list": tensors})
    return {"checkpoints": described}


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What headers and configuration tell of a checkpoint."""
    ties = tied_names(checkpoint)
    own = {name: spec for name, spec in checkpoint.specs.items() if name not in ties}
    dtypes = Counter[str]()
    for spec in own.values():
        dtypes[spec.dtype] += spec.num_elements
    manifest = Manifest.read_if_any(checkpoint.directory)
    return {
        "architecture": architecture(checkpoint) or None,
        "configuration": checkpoint.config_name,
        "parameters": sum(dtypes.values()),
        "tensors": len(own),
        "dtypes": dict(dtypes),
        "quantized": f"{found.method} ({found.evidence})" if (found := quantization_of(checkpoint)) else None,
        "tied": ties,
        "bytes": sum(spec.num_bytes for spec in own.values()),
        "files": [file.name for file in checkpoint.files],
        "metadata": dict(checkpoint.metadata),
        "made_by": f"soupkit {manifest.command}" if manifest else None,
        "metrics": manifest.metrics if manifest else {},
    }


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value[:8])) + (f", … {len(value)} in all" if len(value) > 8 else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value or "")
