"""`diff`: compare two checkpoints tensor by tensor, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING
from soupkit.checkpoint.quantized import quantization_of
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.events import Report, Table, Told, Warned
from soupkit.jsons import Json
from soupkit.recipe.inspect import Diff
from soupkit.world import World

CHUNK = 1 << 20


def diff(recipe: Diff, world: World, report: Report) -> Json:
    """Compare two checkpoints tensor by tensor: ‖a − b‖/‖a‖ and cos(a, b), in float64, chunk by chunk.

    Counters, masks and other tensors that are not floating stand apart: they are in no figure over all
    tensors.
    """
    a, b = open_checkpoint(recipe.a), open_checkpoint(recipe.b)
    for each in (a, b):
        if found := quantization_of(each):
            report(
                Warned(
                    f"{each.reference}: is quantized by {found.method}: what is compared are codes, not "
                    f"weights"
                )
            )
    shared = [name for name in a.specs if name in b.specs and a.specs[name].shape == b.specs[name].shape]
    with ThreadPoolExecutor(world.num_threads) as pool:
        rows = list(pool.map(lambda name: _compare(a, b, name), shared))
    rows.sort(key=lambda row: -_order(row["relative_distance"]))
    floating = [row for row in rows if _is_floating(a, b, row["tensor"])]
    others = [row for row in rows if not _is_floating(a, b, row["tensor"])]
    result = {
        "only_in_a": sorted(a.specs.keys() - b.specs.keys()),
        "only_in_b": sorted(b.specs.keys() - a.specs.keys()),
        "shapes": _differing(a, b, "shape"),
        "dtypes": _differing(a, b, "dtype"),
        "num_equal": sum(row["equal"] for row in rows),
        "overall": _overall(floating),
        "tensors": floating,
        "integers": [_as_integers(a, b, row) for row in others],
    }
    _report_diff(result, recipe.limit, report)
    return result


def _differing(a: Checkpoint, b: Checkpoint, what: str) -> dict[str, list[object]]:
    pairs = {
        name: (getattr(a.specs[name], what), getattr(b.specs[name], what))
        for name in a.specs
        if name in b.specs
    }
    return {name: [left, right] for name, (left, right) in pairs.items() if left != right}


def _compare(a: Checkpoint, b: Checkpoint, name: str) -> Json:
    sums = np.zeros(4)  # ‖a−b‖², ‖a‖², ‖b‖², ⟨a,b⟩
    x, y = a[name].reshape(-1), b[name].reshape(-1)
    for start in range(0, x.size, CHUNK):
        left, right = (values[start : start + CHUNK].astype(np.float64) for values in (x, y))
        difference = left - right
        sums += (difference @ difference, left @ left, right @ right, left @ right)
    distance, norm_a, norm_b = np.sqrt(sums[:3])
    floating = _is_floating(a, b, name)
    return {
        "tensor": name,
        "equal": bool(x.dtype == y.dtype and np.array_equal(x.view(np.uint8), y.view(np.uint8))),
        "relative_distance": float(distance / norm_a) if norm_a else (0.0 if distance == 0 else math.inf),
        "cosine": float(sums[3] / (norm_a * norm_b)) if norm_a and norm_b and floating else None,
        "squares": [float(value) for value in sums],
    }


def _is_floating(a: Checkpoint, b: Checkpoint, name: str) -> bool:
    """Whether both hold weights: other tools write counters as floating numbers."""
    counts = name.rpartition(".")[2] == "num_batches_tracked"
    return not counts and all(each.specs[name].dtype in FLOATING for each in (a, b))


def _overall(rows: list[Json]) -> dict[str, float | None]:
    """The same measures over all shared tensors as one vector."""
    sums = np.sum([row.pop("squares") for row in rows], axis=0) if rows else np.zeros(4)
    norms = math.sqrt(sums[1]) * math.sqrt(sums[2])
    return {
        "relative_distance": math.sqrt(sums[0] / sums[1]) if sums[1] else None,
        "cosine": float(sums[3] / norms) if norms else None,
    }


def _as_integers(a: Checkpoint, b: Checkpoint, row: Json) -> Json:
    """How many elements of a counter or mask differ, and the first pair that does."""
    x, y = a[row["tensor"]].reshape(-1), b[row["tensor"]].reshape(-1)
    unequal = np.flatnonzero(x != y)
    first = [x[unequal[0]].item(), y[unequal[0]].item()] if unequal.size else None
    return {
        "tensor": row["tensor"],
        "equal": row["equal"],
        "num_different": int(unequal.size),
        "first": first,
    }


def _order(distance: float) -> float:
    return math.inf if math.isnan(distance) else distance


def _report_diff(result: Json, limit: int, report: Report) -> None:
    for key, title in (("only_in_a", "only in A"), ("only_in_b", "only in B")):
        if result[key]:
            report(Told(f"{title}: {len(result[key])} tensors, for example {result[key][0]}"))
    for key in ("shapes", "dtypes"):
        if result[key]:
            name, (left, right) = next(iter(result[key].items()))
            report(
                Told(f"{key} differ in {len(result[key])} tensors, for example {name}: {left} and {right}")
            )
    _report_integers(result["integers"], report)
    rows = [row for row in result["tensors"] if not row["equal"]]
    shown = rows[:limit] if limit else rows
    overall = result["overall"]
    caption = (
        f"{result['num_equal']} of {len(result['tensors'] + result['integers'])} shared tensors "
        f"are equal, bit for bit"
    )
    if len(shown) < len(rows):
        caption += f"; {len(rows) - len(shown)} more differ (--limit 0 shows them)"
    cells = [(row["tensor"], row["relative_distance"], row["cosine"]) for row in shown]
    cells.append(
        (
            "all floating tensors" if result["integers"] else "all shared tensors",
            overall["relative_distance"],
            overall["cosine"],
        )
    )
    report(Table("diff", ("tensor", "‖a − b‖ / ‖a‖", "cosine"), tuple(cells), caption))


def _report_integers(rows: Sequence[Json], report: Report) -> None:
    differing = [row for row in rows if not row["equal"]]
    if differing:
        row = max(differing, key=lambda row: row["num_different"])
        pair = f": {row['first'][0]} and {row['first'][1]}" if row["first"] else ", in dtype only"
        report(
            Told(
                f"integers differ in {len(differing)} of {len(rows)} tensors, for example "
                f"{row['tensor']}{pair}"
            )
        )
