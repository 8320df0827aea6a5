"""What will live in memory while coefficients are learned, and what is chosen so that it fits.

Shape suffixes: K ingredients, D parameters.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass

from soupkit.errors import RecipeError
from soupkit.events import Table
from soupkit.soup.blocks import Layout
from soupkit.soup.resident import FORMS, SCRATCH, Form, matrix_bytes
from soupkit.soup.subspace import READ
from soupkit.task.task import MOST_TOGETHER, Pass

FLOAT = 4
SHARE_OF_FREE = 0.8
"""Of the memory that is free now, without --max-memory."""
SHARE_OF_ACTIVATIONS = 0.25
"""Activations get at most this share of the limit: smaller pieces of a batch change no result."""
BACKWARD = 1.3
"""Activations and what the backward pass holds beside them, as a multiple of the activations."""


WORKSPACES = 64 << 20
"""What linear algebra, optimizers and scoring allocate beside: measured at 12 MB with a ViT-B/32 on one
thread."""


@dataclass(frozen=True)
class Demand:
    """What a search needs: the tensors, its ingredients, how much one example's activations take, and what is
    there.

    process: bytes of this process now, the model included. examples: what these keep in memory. num_ranks:
    how many processes share the directions. together: all directions are needed at once. head: what passes
    through weights that are learned too, to make a head of them: prompts, through CLIP's text tower.
    """

    layout: Layout
    num_ingredients: int
    batch_size: int
    activations: int
    process: int
    examples: int = 0
    num_ranks: int = 1
    together: bool = True
    head: Pass | None = None

    def prompts(self, piece: int) -> int:
        """Prompts of one pass: they take no more than examples do, which are not there at the same time."""
        if self.head is None:
            return MOST_TOGETHER
        fits = piece * self.activations // self.head.each if self.head.each else MOST_TOGETHER
        return max(1, min(fits, MOST_TOGETHER, self.head.num or MOST_TOGETHER))


@dataclass(frozen=True)
class MemoryPlan:
    """The choice: form of the directions, models of a model batch, examples of a piece; bytes of each
    part."""

    form: Form
    model_batch: int
    piece: int
    parts: tuple[tuple[str, int], ...]
    limit: int
    prompts: int = MOST_TOGETHER

    @property
    def num_bytes(self) -> int:
        """The promised peak of one process."""
        return sum(size for _, size in self.parts)

    def table(self) -> Table:
        """What will live where."""
        rows = (
            *((name, _megabytes(size)) for name, size in self.parts),
            ("together", _megabytes(self.num_bytes)),
        )
        caption = (
            f"limit {_megabytes(self.limit)}; directions of {self.model_batch} models at a time "
            f"as {self.form}"
        )
        return Table(
            "memory of each process", ("part", "MB"), rows, f"{caption}; {self.piece} examples per pass"
        )

    def to_json(self) -> dict[str, object]:
        """For the manifest and --json."""
        return {
            "form": self.form,
            "model_batch": self.model_batch,
            "examples_per_pass": self.piece,
            "bytes": dict(self.parts),
            "total": self.num_bytes,
            "limit": self.limit,
        }


def choose(
    demand: Demand,
    *,
    limit: int,
    form: Form | None = None,
    model_batch: int | None = None,
    piece: int | None = None,
) -> MemoryPlan:
    """The most exact form in which all models fit together; else model batches in int8, or the disk.

    Together is better than in batches, since the soup of a batch stays as it is in the next; that is worth
    smaller passes, which change no result. What is given is kept. Raises RecipeError when nothing fits,
    naming the least that would.
    """
    pieces = [piece] if piece else _pieces(demand, limit)
    plans = list(_candidates(demand, limit, pieces, form, model_batch))
    for plan in plans:
        if plan.num_bytes <= limit:
            return plan
    least = min(plans, key=lambda plan: plan.num_bytes)
    raise RecipeError(
        f"max_memory is {_megabytes(limit)}, but {_megabytes(least.num_bytes)} are needed for "
        f"{least.model_batch} models at a time as {least.form}",
        hint="raise --max-memory, or lower --model-batch, or start more ranks",
    )


def _candidates(
    demand: Demand, limit: int, pieces: list[int], form: Form | None, model_batch: int | None
) -> Iterable[MemoryPlan]:
    """Best first: all that is asked for in memory at once, in passes of ever fewer examples; then what needs
    less."""
    num = min(model_batch or demand.num_ingredients, demand.num_ingredients)
    forms = [form] if form else list(FORMS)
    in_memory = [each for each in forms if each != "disk"]
    for piece in pieces:
        yield from (plan_for(demand, each, num, piece, limit) for each in in_memory)
    for piece in pieces:
        if "disk" in forms and (demand.together or model_batch or not in_memory):
            yield plan_for(demand, "disk", num, piece, limit)
        elif not demand.together and not model_batch:
            for num_batches in range(2, num // 2 + 1):
                yield plan_for(demand, in_memory[-1], -(-num // num_batches), piece, limit)


def plan_for(demand: Demand, form: Form, model_batch: int, piece: int, limit: int) -> MemoryPlan:
    """The bytes of one choice, per process."""
    layout, own = demand.layout, -(-model_batch // demand.num_ranks)
    num_bytes = FLOAT * layout.num_parameters
    widest = max((span.matrix[1] for span in layout.spans), default=0)
    prompts, head = demand.prompts(piece), demand.head or Pass(0, 0, 0)
    parts = (
        ("this process and the model", demand.process),
        ("gradient", num_bytes),
        ("centre", num_bytes),
        (f"directions, {own} × {form}", sum(matrix_bytes(*span.matrix, own, form) for span in layout.spans)),
        ("widened directions", FLOAT * max(SCRATCH, widest * own) if form in ("bfloat16", "int8") else 0),
        ("reading", READ * 20 + max((span.matrix[1] for span in layout.spans), default=0) * 20),
        ("activations", int(BACKWARD * max(piece * demand.activations, prompts * head.each))),
        *((("prompts", head.made),) if head.made else ()),
        ("examples", demand.examples),
        ("workspaces of libraries", WORKSPACES),
    )
    return MemoryPlan(form, model_batch, piece, parts, limit, prompts)


def _pieces(demand: Demand, limit: int) -> list[int]:
    """Examples per pass whose activations stay within their share; and, where nothing else fits, ever
    fewer."""
    fits = int(SHARE_OF_ACTIVATIONS * limit / max(1, BACKWARD * demand.activations))
    pieces = [max(1, min(demand.batch_size, fits))]
    while pieces[-1] > 1:
        pieces.append(pieces[-1] // 2)
    return pieces


def resident_bytes() -> int:
    """The memory of this process now (its peak, where the system does not say)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  (not a file on any disk)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def give_back_memory() -> None:
    """Hand freed memory back to the system; the allocator of the C library keeps it otherwise. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes() -> int:
    """Memory that this process could take now, what it has included."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            found = dict(line.split(":") for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024 + resident_bytes()
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
