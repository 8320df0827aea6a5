"""A journal beside an output: what a killed search has found so far, so that the same command goes on from
there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from soupkit.checkpoint.output import journal_path
from soupkit.jsons import Json
from soupkit.whole import whole_file
from soupkit.world import ALONE, World

INTERVAL = 20.0
"""Seconds between two states of a stage under way; the end of an epoch is always written."""


class Journal:
    """Finished stages and the state of the one under way, in one small file, whole or not at all.

    identity: what the search depends on; a journal of anything else is not read. path None: nothing is kept.
    Only rank 0 reads and writes; the others are told what it read. Values are what `torch.save` takes:
    tensors and plain Python.
    """

    def __init__(
        self, path: Path | None, identity: str, *, world: World = ALONE, resume: bool = True
    ) -> None:
        self._path = path
        self._writes = world.is_main and path is not None
        self._values: Json = {"identity": identity, "finished": {}, "stage": None, "state": None}
        self._written = time.monotonic()
        found = world.in_main(lambda: _read(path) if path and resume else None)
        if found and found.get("identity") == identity:
            self._values = found
        self.resumed = found is not None and self._values is found

    @classmethod
    def beside(cls, out: Path, identity: str, *, world: World = ALONE, resume: bool = True) -> Journal:
        """The journal of an output directory; with `resume` off a new one, whatever lies there."""
        return cls(journal_path(out), identity, world=world, resume=resume)

    def result(self, stage: str) -> Any:
        """What a finished stage came to; None when it is not finished."""
        return self._values["finished"].get(stage)

    def finish(self, stage: str, result: object) -> None:
        """A stage is finished."""
        self._values["finished"][stage] = result
        self._values |= {"stage": None, "state": None}
        self._write()

    def state(self, stage: str) -> Any:
        """The state of a stage that was under way; None when there is none."""
        return self._values["state"] if self._values["stage"] == stage else None

    @property
    def due(self) -> bool:
        """Whether the last state was written some time ago."""
        return time.monotonic() - self._written > INTERVAL

    def keep(self, stage: str, state: object) -> None:
        """The state of the stage under way."""
        self._values |= {"stage": stage, "state": state}
        self._write()

    def remove(self) -> None:
        """The output exists: nothing is left to go on with."""
        if self._writes and self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._written = time.monotonic()
        if not self._writes or self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self._path, sync=True) as temporary:
            torch.save(self._values, temporary)


def _read(path: Path) -> Json | None:
    """None for what is not there or not a journal: then the search starts anew."""
    try:
        values = torch.load(path, weights_only=True)
    except Exception:  # whatever a damaged file makes the reader raise
        return None
    return (
        values
        if isinstance(values, dict) and {"identity", "finished", "stage", "state"} <= values.keys()
        else None
    )
