"""`View`: tensors that are made as they are read, from those of other sources."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.source import Source, config_of, name_of, slots_of, tied_names
from soupkit.jsons import Json, JsonView


class View(Source):
    """A source that is made of others: it says what its tensors are, `slots`, and how a stretch of one is
    read.

    What it does not say otherwise is what `source` says, whose companions go along. stored: the slots in
    which its tensors are to be written, where they are read wider. others: what is read beside. leaving:
    names of companions that do not go along.
    """

    def __init__(
        self,
        source: Mapping[str, Array],
        *others: Mapping[str, Array],
        reference: str | None = None,
        slots: Mapping[str, Slot] | None = None,
        stored: Mapping[str, Slot] | None = None,
        config: JsonView | None = None,
        leaving: Collection[str] = (),
    ) -> None:
        self.source = source
        self.reference = name_of(source, 0) if reference is None else reference
        self.slots = slots_of(source) if slots is None else slots
        self.stored = self.slots if stored is None else stored
        self.files = tuple(
            file for each in (source, *others) if isinstance(each, Source) for file in each.files
        )
        self.config = config_of(source) if config is None else config
        self.ties = tied_names(source)
        self._leaving = leaving

    @property
    def companions(self) -> Sequence[Path]:
        """Those of its source, without what it leaves behind."""
        own = self.source.companions if isinstance(self.source, Source) else ()
        return [path for path in own if path.name not in self._leaving]

    def identity(self, *, threads: int = 0) -> str:
        """The content hash of what is read."""
        return content_hash(self, threads=threads)


def stored_slots(source: Mapping[str, Array]) -> Mapping[str, Slot]:
    """The dtype and shape in which the tensors of any mapping of arrays are to be written."""
    return source.stored if isinstance(source, View) else slots_of(source)


def record_of(source: Mapping[str, Array]) -> Json:
    """What a manifest says of what a view is made of: where it lies, and the content that lies there."""
    record = source.record() if isinstance(source, Source) else {}
    return record if "content" in record else {**record, "content": content_hash(source)}


def checkpoint_of(source: Mapping[str, Array]) -> Checkpoint | None:
    """The checkpoint that a source is, or is in the end a view of; None where its tensors come from
    elsewhere."""
    while isinstance(source, View):
        source = source.source
    return source if isinstance(source, Checkpoint) else None
