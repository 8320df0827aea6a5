"""Checkpoints of other programs, read where they lie: which format a path is of, and its tensors by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from soupkit.checkpoint.formats.dcp import METADATA, read_dcp
from soupkit.checkpoint.formats.numpy_files import is_array_pickle, is_npz, read_array_pickle, read_npz
from soupkit.checkpoint.formats.places import NOT_WEIGHTS, Shaped
from soupkit.checkpoint.formats.ranks import rank_files, read_ranks
from soupkit.checkpoint.formats.selection import Selection
from soupkit.checkpoint.formats.shards import refuse_empty
from soupkit.checkpoint.formats.state_dict import StateDict, find_state_dict
from soupkit.checkpoint.formats.stored import Stored, stored_slot
from soupkit.checkpoint.formats.tensor_names import clean_names
from soupkit.checkpoint.formats.zero import is_zero, read_zero
from soupkit.checkpoint.header import TensorSpec, identity_of
from soupkit.checkpoint.layout import Layout, read_layout, read_parts
from soupkit.checkpoint.order import naturally
from soupkit.errors import ReferenceError


@dataclass(frozen=True)
class Format:
    """A format of another program. find: the folder or file that holds it behind a path, None for any other
    path; read: the containers there, with a `Stored` for every tensor."""

    name: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path], Any]


def open_layout(path: Path, selection: Selection = Selection()) -> Layout:
    """The layout of a path: safetensors, or the weights in what another program saved.

    Raises ReferenceError, CheckpointError. Cost: headers and pickles without their tensors.
    """
    if (found := _found(path)) is not None:
        return _layout_of(path, *found, selection)
    return _selected(path, read_parts(path) or read_layout(path), selection)


def is_foreign(path: Path) -> bool:
    """Whether a path holds a checkpoint of another program that is read where it lies."""
    return _found(path) is not None


def _found(path: Path) -> tuple[Format, Path] | None:
    """The format of a path, and what holds it; safetensors beside it win. A path that no system takes holds
    none; whoever opens it says why."""
    if not os.path.exists(path):  # noqa: PTH110  (False for a name too long)
        return None
    is_folder = path.is_dir()
    if is_folder and any(path.glob("*.safetensors")):
        return None
    for each in FOLDERS if is_folder else FILES:
        if (place := each.find(path)) is not None:
            return each, place
    return None


def _selected(path: Path, layout: Layout, selection: Selection) -> Layout:
    """Safetensors, of which some is taken or called otherwise."""
    if selection == Selection():
        return layout
    known = layout.specs
    ties = {new: known[old] for new, old in layout.metadata.items() if new not in known and old in known}
    found, tensors, notes = _taken({**known, **ties}, path, selection)
    return replace(
        layout,
        specs={name: tensor for name, tensor in tensors.items() if isinstance(tensor, TensorSpec)},
        metadata={"format": layout.metadata.get("format", "pt")},
        read=selection.to_json(),
        kind=found.kind,
        notes=notes,
    )


def _taken(
    value: object, path: Path, selection: Selection
) -> tuple[StateDict, Mapping[str, Shaped], tuple[str, ...]]:
    """The state dict in what was read, its tensors by their names, and what to tell of it."""
    renamed = (*selection.strip, *selection.drop)
    found = find_state_dict(value, path, key=selection.key, prefer=selection.prefer, renamed=renamed)
    tensors, renamings = clean_names(
        found.tensors, path, strip=selection.strip, drop=selection.drop, rename=selection.rename
    )
    refuse_empty(tensors, path, selection.empty)
    return found, tensors, (*_others(found), *found.notes, *renamings)


def _layout_of(path: Path, each: Format, place: Path, selection: Selection) -> Layout:
    found, taken, notes = _taken(each.read(place), path, selection)
    tensors = {name: tensor for name, tensor in taken.items() if isinstance(tensor, Stored)}
    files = {piece.file for tensor in tensors.values() for piece in tensor.spread.pieces}
    ordered = tuple(Path(file) for file in naturally(map(str, files)))
    return Layout(
        path if path.is_dir() else path.parent,
        ordered,
        {name: _spec(name, tensor, ordered[0]) for name, tensor in tensors.items()},
        {"format": "pt"},
        {file: identity_of(file.stat()) for file in ordered},
        {name: tensor.spread for name, tensor in tensors.items()},
        _ties(tensors),
        {"format": each.name, "where": found.where, **selection.to_json()},
        found.kind,
        notes=notes,
    )


def _spec(name: str, tensor: Stored, otherwise: Path) -> TensorSpec:
    """A tensor as a header would name it, in the file that holds its first piece."""
    pieces = tensor.spread.pieces
    return TensorSpec(*stored_slot(name, tensor), pieces[0].file if pieces else otherwise, -1)


def _ties(tensors: Mapping[str, Stored]) -> dict[str, str]:
    first: dict[object, str] = {}
    ties = {}
    for name in sorted(tensors):
        key = (tensors[name].origin, tensors[name].dtype, tensors[name].shape)
        if tensors[name].num_elements and first.setdefault(key, name) != name:
            ties[name] = first[key]
    return ties


def _others(found: StateDict) -> tuple[str, ...]:
    """What to tell where there was a choice."""
    if not found.others:
        return ()
    return (f"took {found.where}; there are also {', '.join(found.others)}",)


def _dcp_folder(path: Path) -> Path | None:
    """A folder of a DCP: the path, or the one folder in it that is one and holds a model."""
    if (path / METADATA).is_file():
        return path
    inside = [each.parent for each in path.glob(f"*/{METADATA}") if not NOT_WEIGHTS.search(each.parent.name)]
    return _only(inside, path, "torch.distributed.checkpoint")


def _zero_folder(path: Path) -> Path | None:
    """The folder of DeepSpeed ZeRO: the path, or the one in it that its file `latest` names."""
    if is_zero(path):
        return path
    inside = [each for each in path.iterdir() if each.is_dir() and is_zero(each)]
    latest = path / "latest"
    if len(inside) > 1 and latest.is_file():
        inside = [each for each in inside if each.name == latest.read_text(errors="replace").strip()]
    return _only(inside, path, "DeepSpeed ZeRO")


def _only(inside: list[Path], path: Path, what: str) -> Path | None:
    """The one checkpoint in a folder, if any. Raises ReferenceError for several."""
    if len(inside) > 1:
        raise ReferenceError(
            f"{path}: holds {len(inside)} checkpoints of {what}",
            hint=f"name one: {naturally(map(str, inside))[-1]}",
        )
    return inside[0] if inside else None


FOLDERS = (
    Format("dcp", _dcp_folder, read_dcp),
    Format("zero", _zero_folder, read_zero),
    Format("rank files", lambda path: path if rank_files(path) else None, read_ranks),
)
FILES = (
    Format("dcp", lambda path: path.parent if path.name == METADATA and path.is_file() else None, read_dcp),
    Format("npz", lambda path: path if is_npz(path) else None, read_npz),
    Format("pkl", lambda path: path if is_array_pickle(path) else None, read_array_pickle),
)
