"""`inspect` and `diff`: look at checkpoints without torch."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint, tied_names
from soupkit.checkpoint.compatible import architecture
from soupkit.checkpoint.dtypes import FLOATING
from soupkit.checkpoint.reference import open_checkpoint, open_references
from soupkit.events import Cell, Report, Table, Told
from soupkit.manifest import Manifest
from soupkit.recipe.inspect import Diff, Inspect
from soupkit.world import World

CHUNK = 1 << 20
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


def diff(recipe: Diff, world: World, report: Report) -> dict[str, Any]:
    """Compare two checkpoints tensor by tensor: ‖a − b‖/‖a‖ and cos(a, b), in float64, chunk by chunk."""
    a, b = open_checkpoint(recipe.a), open_checkpoint(recipe.b)
    shared = [name for name in a.specs if name in b.specs and a.specs[name].shape == b.specs[name].shape]
    with ThreadPoolExecutor(world.num_threads) as pool:
        rows = list(pool.map(lambda name: _compare(a, b, name), shared))
    rows.sort(key=lambda row: -_order(row["relative_distance"]))
    result = {
        "only_in_a": sorted(a.specs.keys() - b.specs.keys()),
        "only_in_b": sorted(b.specs.keys() - a.specs.keys()),
        "shapes": _differing(a, b, "shape"),
        "dtypes": _differing(a, b, "dtype"),
        "num_equal": sum(row["equal"] for row in rows),
        "overall": _overall(rows),
        "tensors": rows,
    }
    _report_diff(result, recipe.limit, report)
    return result


def _differing(a: Checkpoint, b: Checkpoint, what: str) -> dict[str, list[Any]]:
    pairs = {name: (getattr(a.specs[name], what), getattr(b.specs[name], what)) for name in a.specs if name in b.specs}
    return {name: [left, right] for name, (left, right) in pairs.items() if left != right}


def _compare(a: Checkpoint, b: Checkpoint, name: str) -> dict[str, Any]:
    sums = np.zeros(4)  # ‖a−b‖², ‖a‖², ‖b‖², ⟨a,b⟩
    x, y = a[name].reshape(-1), b[name].reshape(-1)
    for start in range(0, x.size, CHUNK):
        left, right = (values[start : start + CHUNK].astype(np.float64) for values in (x, y))
        difference = left - right
        sums += (difference @ difference, left @ left, right @ right, left @ right)
    distance, norm_a, norm_b = np.sqrt(sums[:3])
    floating = a.specs[name].dtype in FLOATING
    return {
        "tensor": name,
        "equal": bool(x.dtype == y.dtype and np.array_equal(x.view(np.uint8), y.view(np.uint8))),
        "relative_distance": float(distance / norm_a) if norm_a else (0.0 if distance == 0 else math.inf),
        "cosine": float(sums[3] / (norm_a * norm_b)) if norm_a and norm_b and floating else None,
        "squares": [float(value) for value in sums],
    }


def _overall(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The same measures over all shared tensors as one vector."""
    sums = np.sum([row.pop("squares") for row in rows], axis=0) if rows else np.zeros(4)
    norms = math.sqrt(sums[1]) * math.sqrt(sums[2])
    return {
        "relative_distance": math.sqrt(sums[0] / sums[1]) if sums[1] else None,
        "cosine": float(sums[3] / norms) if norms else None,
    }


def _order(distance: float) -> float:
    return math.inf if math.isnan(distance) else distance


def _report_diff(result: dict[str, Any], limit: int, report: Report) -> None:
    for key, title in (("only_in_a", "only in A"), ("only_in_b", "only in B")):
        if result[key]:
            report(Told(f"{title}: {len(result[key])} tensors, for example {result[key][0]}"))
    for key in ("shapes", "dtypes"):
        if result[key]:
            name, (left, right) = next(iter(result[key].items()))
            report(Told(f"{key} differ in {len(result[key])} tensors, for example {name}: {left} and {right}"))
    rows = [row for row in result["tensors"] if not row["equal"]]
    shown = rows[:limit] if limit else rows
    overall = result["overall"]
    caption = f"{result['num_equal']} of {len(result['tensors'])} shared tensors are equal, bit for bit"
    if len(shown) < len(rows):
        caption += f"; {len(rows) - len(shown)} more differ (--limit 0 shows them)"
    cells = [(row["tensor"], row["relative_distance"], row["cosine"]) for row in shown]
    cells.append(("all shared tensors", overall["relative_distance"], overall["cosine"]))
    report(Table("diff", ("tensor", "‖a − b‖ / ‖a‖", "cosine"), tuple(cells), caption))
