"""What `--dry-run` tells of a merge by a method: bytes, memory, disk, and the time it should take."""

from __future__ import annotations

import time

from soupkit.asked import Weighs
from soupkit.checkpoint.dtypes import FLOATING, Array
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.views.view import checkpoint_of
from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.merge.per_tensor import piece_of
from soupkit.merge.pieces import row_length
from soupkit.report.tables import amounts, tell_plan
from soupkit.stages.methods.opened import MethodMerge
from soupkit.stages.outputs.soup import plan_values, stream_options
from soupkit.world import World

PROCESS_BYTES = 45_000_000
"""What Python, numpy and the command line take before any merge."""
PROBE_ELEMENTS = 1 << 22
LARGEST_PROBE = 1 << 24


def show_method_plan(merge: MethodMerge, recipe: Weighs, world: World, report: Report) -> Json:
    """Everything is checked by now, and nothing is written; a few tensors are merged into nothing for the
    time."""
    values = plan_values(merge.ingredients, recipe, world) | {
        "peak_memory": peak_memory(merge, world.num_threads),
        "memory": merge.method.memory,
        "estimated_seconds": estimate_seconds(merge, recipe, world),
    }
    caption = (
        "a piece is 32,768 elements per ingredient and thread; seconds are estimated from a few tensors "
        "merged now; what is not in the page cache, or is written, waits for the disk"
    )
    tell_plan(amounts(values), report, nothing="was written", caption=caption)
    return {"plan": values}


def peak_memory(merge: MethodMerge, threads: int) -> int:
    """An upper estimate of the bytes in memory: buffers, temporaries of pieces, and what a search for a cut
    holds."""
    num = len(merge.inputs.models)
    slots = {name: slot for name, slot in merge.ingredients.plan.slots.items() if slot.dtype in FLOATING}
    piece = max(
        (piece_of(merge.method, slot, merge.arguments(name)) for name, slot in slots.items()), default=0
    )
    per_thread = piece * (38 + 33 * num + (120 if merge.method.pieces == "row" else 0))
    per_thread += 16_000_000 if "8 MB" in merge.method.memory else 0
    per_thread += 3 * 8 * max((_square(merge.method.memory, slot) for slot in slots.values()), default=0)
    return PROCESS_BYTES + per_thread * (1 if merge.method.pieces == "tensor" else threads)


def _square(memory: str, slot: Slot) -> int:
    """Elements of the square matrix that a method makes of a tensor's rows (O × O) or columns, if it says
    so."""
    if len(slot.shape) < 2 or not ("Gram" in memory or " × " in memory):
        return 0
    columns = row_length(slot.shape)
    return int((slot.num_elements // max(1, columns) if "O × O" in memory else columns) ** 2)


class _Nowhere:
    """A sink that forgets."""

    def write(self, name: str, start: int, values: Array) -> None:
        """Take values and do nothing."""


def estimate_seconds(merge: MethodMerge, recipe: Weighs, world: World) -> float | None:
    """Merge a few tensors into nothing, and scale the time up to all; None where that would download
    weights."""
    found = map(checkpoint_of, merge.ingredients.checkpoints)
    if any(checkpoint is None or checkpoint.remote is not None for checkpoint in found):
        return None
    slots = {name: slot for name, slot in merge.ingredients.plan.slots.items() if slot.dtype in FLOATING}
    probe = _probe(slots)
    elements = sum(slot.num_elements for slot in probe.values())
    if not elements:
        return 0.0
    start = time.perf_counter()
    merge.engine(probe)(_Nowhere(), stream_options(recipe, world), lambda _: None)
    seconds = (time.perf_counter() - start) * sum(slot.num_elements for slot in slots.values()) / elements
    return float(f"{seconds:.3g}")


def _probe(slots: dict[str, Slot]) -> dict[str, Slot]:
    """Tensors of the larger kind, a few million elements of them."""
    chosen: dict[str, Slot] = {}
    total = 0
    for name in sorted(
        slots, key=lambda name: (slots[name].num_elements > LARGEST_PROBE, -slots[name].num_elements)
    ):
        if total >= PROBE_ELEMENTS:
            break
        chosen[name] = slots[name]
        total += slots[name].num_elements
    return chosen
