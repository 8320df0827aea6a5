"""What checkpoints have seen, by their manifests: the data that they, and all that they were made of, were
fitted to.

An entry is {"how": "trained" | "selected" | "learned", "split": a role, "data": the description of the
division}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.source import Source
from soupkit.errors import CheckpointError
from soupkit.jsons import Json
from soupkit.manifest import Manifest

TRAINING = ("finetune", "train-population", "fge", "curve fit")
"""Commands whose note `data` is what the weights were fitted to."""
MOST = 64
"""Entries that one record carries; what is beyond is left out."""
_ABOVE = 2
_NOTES = {"selected_on": "selected", "learned_on": "learned"}

Entry = Json


def seen_by(directory: Path) -> list[Entry]:
    """The entries of a checkpoint's manifest, its own first, none twice; of the run that it lies in if it has
    none."""
    for place in (directory, *list(directory.resolve().parents)[:_ABOVE]):
        try:
            manifest = Manifest.read_if_any(place)
        except CheckpointError:
            return []  # whoever needs the manifest says what is wrong with it
        if manifest is not None:
            return without_doubles([*_own(manifest), *_inherited(manifest)])
    return []


def seen_of(source: Source) -> list[Entry]:
    """`seen_by` of the folders that the weights of a source lie in, where links lead to included."""
    folders = dict.fromkeys(place.parent for file in source.files for place in (file, file.resolve()))
    return without_doubles(entry for folder in folders for entry in seen_by(folder))


def carried(sources: Iterable[Source]) -> list[list[Entry]]:
    """What each ingredient brings to the record of their soup: every entry once, with the first that has
    it."""
    known: set[str] = set()
    brought = []
    for source in sources:
        new = {key: entry for entry in seen_of(source) if (key := _key(entry)) not in known}
        brought.append(list(new.values())[: max(0, MOST - len(known))])
        known |= new.keys()
    return brought


def ranked_on(checkpoints: Iterable[Checkpoint], by: str) -> Json:
    """The note of a command that chose by what manifests record (`held_out.top1`): which examples that was
    on.

    Empty where a manifest does not say, or where every checkpoint was scored on examples of its own.
    """
    split = by.partition(".")[0]
    manifests = [Manifest.read_if_any(checkpoint.directory) for checkpoint in checkpoints]
    data = [manifest.notes.get("data") if manifest else None for manifest in manifests]
    entries: list[Entry] = [{"how": "selected", "split": split, "data": each} for each in data]
    if not all(map(_is_entry, entries)) or len(without_doubles(entries)) != 1:
        return {}
    described = entries[0]["data"]
    return {"selected_on": {"split": split, "num_examples": described["sizes"][split], "data": described}}


def without_doubles(entries: Iterable[Entry]) -> list[Entry]:
    """The entries, none twice."""
    return list({_key(entry): entry for entry in entries}.values())


def _own(manifest: Manifest) -> list[Entry]:
    notes, found = manifest.notes, []
    if manifest.command in TRAINING and _is_description(notes.get("data")):
        found.append({"how": "trained", "split": "train", "data": notes["data"]})
    for name, how in _NOTES.items():
        note = notes.get(name)
        if (
            isinstance(note, dict)
            and isinstance(note.get("split"), str)
            and _is_description(note.get("data"))
        ):
            found.append({"how": how, "split": note["split"], "data": note["data"]})
    return found


def _inherited(manifest: Manifest) -> list[Entry]:
    lists = [entry.get("seen") for entry in manifest.inputs]
    return [entry for each in lists if isinstance(each, list) for entry in each if _is_entry(entry)]


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("how") in ("trained", *_NOTES.values())
        and entry.get("split") in ("train", "held_out", "test")
        and _is_description(entry.get("data"))
    )


def _is_description(data: object) -> bool:
    """Whether this describes a division of data well enough to find it again."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), str):
        return False
    sizes, digest = data.get("sizes"), data.get("digest")
    whole = isinstance(sizes, dict) and all(
        type(sizes.get(role)) is int for role in ("train", "held_out", "test")
    )
    return whole and isinstance(digest, dict) and type(data.get("split_seed")) is int


def _key(entry: Entry) -> str:
    """Entries of the same examples are the same, wherever the data lay."""
    data = entry["data"]
    return json.dumps(
        [entry["how"], entry["split"], data["data"], data["digest"].get(entry["split"])], default=str
    )
