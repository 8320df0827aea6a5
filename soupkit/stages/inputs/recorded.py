"""Ingredients as a manifest records them: opened again, permuted and turned as they were."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from soupkit.align.permuted import Permuted
from soupkit.align.spec import Permutation, PermutationSpec
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.formats.convert import pickled_files
from soupkit.checkpoint.formats.selection import Selection
from soupkit.checkpoint.hashing import FILES_HASH, files_hash
from soupkit.checkpoint.hub.hub import fetch_pickles
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.checkpoint.source import Source
from soupkit.errors import CheckpointError, ReferenceError
from soupkit.jsons import Json, JsonView
from soupkit.manifest import MANIFEST_NAME, Manifest
from soupkit.world import World


def content_of_input(directory: Path, entry: Json, world: World) -> str:
    """The hash that an input recorded in the manifest of `directory` has now, of the kind that was recorded.

    Raises ReferenceError when it is gone.
    """
    if str(entry.get("content")).startswith(FILES_HASH):
        return files_hash(pickled_files(_pickle_path(directory, entry)))
    return open_input(directory, entry).identity(threads=world.num_threads)


def companions_of_input(directory: Path, entry: Json) -> str | None:
    """What the configuration beside an input is now; None where that was not recorded, as of the Hub's
    commits."""
    if "companions" not in entry:
        return None
    return str(open_input(directory, entry).record()["companions"])


def open_input(directory: Path, entry: Json) -> Checkpoint:
    """An ingredient, by its reference or by its place relative to the output. Raises ReferenceError."""
    if "commit" in entry:
        return open_checkpoint(entry["reference"])
    return Checkpoint(
        _input_path(directory, entry).resolve(),
        reference=entry["reference"],
        selection=Selection.from_json(entry.get("selection", {})),
    )


def open_as_recorded(directory: Path, manifest: Manifest) -> list[Source]:
    """The ingredients of the manifest in `directory`, permuted or turned as it says that they were.

    Raises ReferenceError for one that is gone, CheckpointError when the record is not whole.
    """
    return [
        _rearranged(open_input(directory, entry), entry, manifest.notes, directory)
        if "permutation" in entry
        else open_input(directory, entry)
        for entry in manifest.inputs
    ]


def write_turns(sources: Iterable[Source], directory: Path) -> None:
    """Write the matrices of what was turned beside the weights that were made with them."""
    for source in sources:
        if hasattr(source, "write_turn"):  # Turned, whose module imports torch
            source.write_turn(directory)


def place_of(directory: Path, entry: Json) -> str:
    """What a recipe would name an ingredient by. Raises ReferenceError."""
    return str(entry["reference"] if "commit" in entry else _input_path(directory, entry))


def _rearranged(checkpoint: Checkpoint, entry: JsonView, notes: JsonView, directory: Path) -> Source:
    try:
        permutation = _permutation(entry["permutation"])
        spec = PermutationSpec.from_json(json.loads(notes["alignment"]["spec"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the manifest's permutations cannot be read: {error!r}") from error
    if "turn" in entry:
        from soupkit.stages.inputs.turned import turned_again

        return turned_again(checkpoint, spec, permutation, notes, directory / str(entry["turn"]))
    return Permuted(checkpoint, spec, permutation)


def _permutation(values: Mapping[str, str]) -> Permutation:
    """What `Permuted.record` wrote: group → numbers with spaces between them."""
    return {
        name: np.array([int(number) for number in text.split()], np.int64) for name, text in values.items()
    }


def _pickle_path(directory: Path, entry: Json) -> Path:
    if "commit" in entry:
        return fetch_pickles(entry["reference"])[0][1]
    return _input_path(directory, entry)


def _input_path(directory: Path, entry: Json) -> Path:
    candidates = [Path(os.path.expanduser(entry["reference"]))]  # noqa: PTH111  (raises nothing)
    if entry.get("path"):
        candidates.append(directory / str(entry["path"]))
    for path in candidates:
        if os.path.exists(path):  # noqa: PTH110  (False for a name too long)
            return path
    raise ReferenceError(
        f"{directory / MANIFEST_NAME}: its ingredient {entry['reference']} is no longer there",
        hint="bring it back to that path, or run from the directory in which the merge ran",
    )
