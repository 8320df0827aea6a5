"""Vocabularies of different sizes: checkpoints whose embeddings have other numbers of rows, seen at one size.

Rows are matched by index. That is right for tokenizers that share their first tokens (one extended by the
other) and wrong for unrelated ones, which no merge of weights can repair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from soupkit.checkpoint.dtypes import FLOATING, NUMPY_DTYPES, Array
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import Source, name_of, read_chunk, slots_of
from soupkit.checkpoint.views.view import View, record_of, stored_slots
from soupkit.errors import CompatibilityError
from soupkit.jsons import Json

Policy = Literal["error", "pad", "intersect"]


class Resized(View):
    """A checkpoint with `rows` rows in the tensors `names`: cut, or continued with the rows of `filler`.
    Lazy."""

    def __init__(
        self, source: Mapping[str, Array], names: Sequence[str], rows: int, filler: Mapping[str, Array]
    ) -> None:
        self._filler, self._names, self._rows = filler, set(names), rows
        super().__init__(
            source, slots=self._resized(slots_of(source)), stored=self._resized(stored_slots(source))
        )

    def record(self) -> Json:
        """How many rows it has."""
        return {**record_of(self.source), "rows": self._rows}

    def _resized(self, slots: Mapping[str, Slot]) -> dict[str, Slot]:
        return {
            name: slot._replace(shape=(self._rows, *slot.shape[1:])) if name in self._names else slot
            for name, slot in slots.items()
        }

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        own = slots_of(self.source)[name].num_elements
        here = min(out.size, max(0, own - start))
        if here:
            read_chunk(self.source, name, start, out[:here])
        if here < out.size:
            rest = np.empty(out.size - here, NUMPY_DTYPES[slots_of(self._filler)[name].dtype])
            read_chunk(self._filler, name, start + here, rest)
            out[here:] = rest


def match_vocabularies(sources: Sequence[Source], policy: Policy) -> tuple[list[Source], int | None]:
    """The sources at one vocabulary size, and which of them now has the right configuration (None: nothing to
    do).

    pad: as many rows as the largest; the others are continued with its rows, so that they say nothing new
    about them. intersect: as many rows as the smallest. Raises CompatibilityError for policy "error", with
    the sizes.
    """
    names = _vocabulary(sources)
    if not names:
        return list(sources), None
    sizes = [slots_of(source)[names[0]].shape[0] for source in sources]
    if policy == "error":
        shown = ", ".join(
            f"{name_of(source, k)}: {size}"
            for k, (source, size) in enumerate(zip(sources, sizes, strict=True))
        )
        raise CompatibilityError(
            f"{len(names)} tensors have different numbers of rows, for example {names[0]!r} ({shown})",
            hint="if they are vocabularies that begin alike: --embedding pad extends all to the largest, "
            "--embedding intersect cuts all to the smallest; heads with different classes cannot be merged",
        )
    chosen = sizes.index(max(sizes) if policy == "pad" else min(sizes))
    return [Resized(source, names, sizes[chosen], sources[chosen]) for source in sources], chosen


def _vocabulary(sources: Sequence[Mapping[str, Array]]) -> list[str]:
    """The tensors that differ in their first axis alone, all by the same sizes; none when anything else
    differs."""
    slots = [slots_of(source) for source in sources]
    differing = [name for name in slots[0] if _shapes(slots, name) and len(set(_shapes(slots, name))) > 1]
    sizes = {tuple(shape[0] if shape else 0 for shape in _shapes(slots, name)) for name in differing}
    inner = all(len({shape[1:] for shape in _shapes(slots, name)}) == 1 for name in differing)
    floating = all(slot[name].dtype in FLOATING for slot in slots for name in differing)
    tables = any(len(slots[0][name].shape) > 1 for name in differing)
    return differing if len(sizes) == 1 and inner and floating and tables else []


def _shapes(slots: Sequence[Mapping[str, Slot]], name: str) -> list[tuple[int, ...]]:
    """The shapes of a tensor in all sources; none when one of them lacks it."""
    return [slot[name].shape for slot in slots] if all(name in slot for slot in slots) else []
