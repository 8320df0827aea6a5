"""What a checkpoint holds, from its headers only."""

from __future__ import annotations

from collections import Counter

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import architecture
from soupkit.checkpoint.quantized import quantization_of
from soupkit.checkpoint.source import tied_names
from soupkit.jsons import Json
from soupkit.manifest import Manifest


def describe(checkpoint: Checkpoint) -> Json:
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
        "format": checkpoint.read.get("format", "safetensors"),
        "taken": list(checkpoint.notes),
        "metadata": dict(checkpoint.metadata),
        "made_by": f"soupkit {manifest.command}" if manifest else None,
        "metrics": manifest.metrics if manifest else {},
    }
