"""From other people's checkpoint files to safetensors: which files, which tensors, and the streaming
write."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.classifier import HEAD, published_prefix
from soupkit.checkpoint.dtypes import NUMPY_DTYPES
from soupkit.checkpoint.formats.foreign import NOT_WEIGHTS, PICKLES, is_pickled, refuse_format, sharded_hint
from soupkit.checkpoint.formats.numpy_files import is_npz
from soupkit.checkpoint.formats.pickles import (
    flat_array,
    load_pickle,
    mappings_of,
    release,
    slot_of,
    ties_of,
    uncounted,
)
from soupkit.checkpoint.formats.selection import Selection
from soupkit.checkpoint.formats.shards import refuse_empty
from soupkit.checkpoint.formats.state_dict import Kind, find_state_dict
from soupkit.checkpoint.formats.tensor_names import clean_names
from soupkit.checkpoint.formats.write_dcp import as_torch, write_dcp
from soupkit.checkpoint.header import Identity, Slot, identity_of
from soupkit.checkpoint.layout import check_same, companions
from soupkit.checkpoint.tensors import Plan, TensorFiles
from soupkit.errors import CheckpointError, ReferenceError
from soupkit.jsons import Json, JsonView
from soupkit.manifest import is_plain_name

if TYPE_CHECKING:
    import torch

COPIED = 1 << 24
"""Bytes that are copied at a time."""
PICKLE_INDEX = ".bin.index.json"
PREFERRED = ("pytorch_model.bin.index.json", "pytorch_model.bin", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Pickled:
    """The tensors of one pickled checkpoint, mapped where torch can, under the names that they will have; or
    of a checkpoint that is read where it lies.

    slots: what will be written; ties: {dropped name: kept name} of tensors that share their bytes. files:
    where they were read from; where: the key in the file; others: further state dicts in it; facts: what the
    file says of itself (`arch` of timm, `epoch`, …); directory: what lies beside the weights, None for a lone
    file. kind: averaged weights, raw ones, or those of a file that knows no average; notes: what to tell of
    the choice; identities: which files were read, as they were then.
    """

    tensors: Mapping[str, torch.Tensor] | Checkpoint
    slots: Mapping[str, Slot]
    ties: Mapping[str, str]
    files: tuple[Path, ...]
    where: str = ""
    others: tuple[str, ...] = ()
    facts: JsonView = field(default_factory=dict)
    directory: Path | None = None
    kind: Kind = "plain"
    notes: tuple[str, ...] = ()
    identities: Mapping[Path, Identity] = field(default_factory=dict)

    @property
    def companions(self) -> list[Path]:
        """Configuration and tokenizer files that lie beside the weights of a directory."""
        return companions(self.directory) if self.directory else []


def pickled_files(path: Path) -> list[Path]:
    """The pickles of one checkpoint: a file, or what a directory or a shard index names. Raises
    ReferenceError."""
    if path.is_dir():
        names = [entry.name for entry in path.iterdir()]
        sharded = sharded_hint(names, path)
        if sharded and not any(name in names for name in PREFERRED):
            raise ReferenceError(
                f"{path}: is spread over many files, which are no checkpoint each", hint=sharded
            )
        return pickled_files(path / choose_pickle(names, str(path)))
    if not path.is_file():
        raise ReferenceError(f"{path}: no such file or directory", hint="check the path")
    if is_npz(path):
        return [path]
    if path.name.endswith(PICKLE_INDEX):
        names = shard_names(path, [entry.name for entry in path.parent.iterdir()])
        return [path.parent / name for name in names]
    if path.suffix == ".safetensors":
        raise ReferenceError(f"{path}: is safetensors already", hint="soupkit reads it as it is")
    if not is_pickled(path):
        refuse_format(path)
    return [path]


def choose_pickle(names: Sequence[str], where: str, *, separator: str = "/", globs: bool = True) -> str:
    """The pickle or shard index among a folder's file names. Raises ReferenceError when there is no telling.

    separator: stands between `where` and a file in a reference; globs: whether references may hold patterns.
    """
    found = [name for name in PREFERRED if name in names][:1]
    others = (name for name in names if name.endswith((PICKLE_INDEX, *PICKLES)) and name not in NOT_WEIGHTS)
    found = found or sorted(others)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ReferenceError(f"{where}: holds no {', '.join(PICKLES)} file", hint="name the file to convert")
    raise ReferenceError(
        f"{where}: holds {len(found)} candidates ({', '.join(found[:5])})",
        hint=f"name one, {where}{separator}{found[0]}"
        + (f", or all: soupkit convert '{where}/*{Path(found[0]).suffix}' --out DIR" if globs else ""),
    )


def shard_names(index: Path, present: Collection[str]) -> list[str]:
    """The files that a shard index names, all of which must be present beside it. Raises CheckpointError."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{index}: is not a shard index with a weight_map: {error!r}") from error
    for name in names:
        if not is_plain_name(name) or name not in present:
            raise CheckpointError(
                f"{index}: names the shard {name!r}, which is not there", hint="download it"
            )
    return names


def read_pickled(
    path: Path,
    selection: Selection = Selection(),
    *,
    directory: Path | None = None,
    advance: Callable[[int], None] = uncounted,
) -> Pickled:
    """Open a pickled checkpoint without running anything of it. Raises ReferenceError, CheckpointError.

    directory: where its companions are, when `path` is only one of many files there; advance: counts the
    bytes whose checksums were compared. Memory: tensors of zip archives (torch ≥ 1.6) are mapped and cost
    nothing; older files are read whole.
    """
    files = pickled_files(path)
    identities = {file: identity_of(file.stat()) for file in files}
    tensors: dict[str, torch.Tensor] = {}
    notes: dict[str, None] = {}
    for file in files:
        value = load_pickle(file, ignore=selection.ignore, advance=advance)
        renamed = (*selection.strip, *selection.drop)
        found = find_state_dict(value, file, key=selection.key, prefer=selection.prefer, renamed=renamed)
        notes |= dict.fromkeys(found.notes)
        for name, tensor in found.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{file}: tensor {name!r} stands in another shard too", hint="remove one of them"
                )
            tensors[name] = cast("torch.Tensor", tensor)
    cleaned, renamings = clean_names(
        tensors, path, strip=selection.strip, drop=selection.drop, rename=selection.rename
    )
    prefix = published_prefix(cleaned)
    if prefix:
        cleaned, _ = clean_names(cleaned, path, strip=(prefix,))
        renamings += (f"took {prefix} off the names of CLIP beside {HEAD}",)
    refuse_empty(cleaned, path, selection.empty)
    if directory is None and (path.is_dir() or path.name.endswith(PICKLE_INDEX)):
        directory = path if path.is_dir() else path.parent
    slots = {name: slot_of(name, tensor) for name, tensor in cleaned.items()}
    ties = ties_of(cleaned)
    return Pickled(
        cleaned,
        {name: slot for name, slot in slots.items() if name not in ties},
        ties,
        tuple(files),
        found.where,
        found.others,
        _facts(value) if len(files) == 1 else {},
        directory,
        found.kind,
        (*notes, *renamings),
        identities,
    )


def _facts(value: object) -> Json:
    """Numbers and words that stand beside the weights."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): item for key, item in value.items() if isinstance(item, str | int | float)}


def pickled_as(tensors: Mapping[str, torch.Tensor], path: Path, note: str) -> Pickled:
    """Tensors that another library made of a file."""
    slots = {name: slot_of(name, tensor) for name, tensor in tensors.items()}
    return Pickled(tensors, slots, {}, (path,), notes=(note,), identities={path: identity_of(path.stat())})


def read_checkpoint(path: Path, selection: Selection = Selection()) -> Pickled:
    """Open a checkpoint that is read where it lies. Raises ReferenceError, CheckpointError."""
    opened = Checkpoint(path, selection=selection)
    return Pickled(
        opened,
        {name: slot for name, slot in opened.slots.items() if name not in opened.ties},
        opened.ties,
        tuple(opened.files),
        str(opened.read.get("where", "")),
        directory=path if path.is_dir() else None,
        kind=opened.kind,
        notes=opened.notes,
    )


def write_pickled(
    directory: Path,
    pickled: Pickled,
    plan: Plan,
    *,
    to: Literal["safetensors", "dcp"] = "safetensors",
    advance: Callable[[int], None],
) -> None:
    """Write the tensors one by one; each one's pages go back to the system before the next is read.

    Memory: one tensor, beside what torch itself takes; a chunk of what is read where it lies. Raises OSError
    (a full disk), CheckpointError.
    """
    if to == "dcp":
        _write_dcp(directory, pickled, advance)
    else:
        with TensorFiles(directory, plan) as files:
            order = [name for file in plan.files for name in file.order]
            if isinstance(pickled.tensors, Checkpoint):
                _copy(pickled.tensors, order, files, advance)
            else:
                _unpickle(pickled.tensors, order, files, pickled.files, advance)
    for file, identity in pickled.identities.items():
        check_same(file, identity, file.stat)


def _write_dcp(directory: Path, pickled: Pickled, advance: Callable[[int], None]) -> None:
    """Tied tensors under each of their names, as a model's own state dict has them."""
    slots = {**pickled.slots, **{name: pickled.slots[kept] for name, kept in pickled.ties.items()}}
    tensors = pickled.tensors

    def read(name: str) -> torch.Tensor:
        values = tensors[name] if isinstance(tensors, Checkpoint) else flat_array(tensors[name])
        advance(0 if name in pickled.ties else values.nbytes)
        return as_torch(values, slots[name])

    write_dcp(directory, slots, read)


def _copy(
    source: Checkpoint, order: Sequence[str], files: TensorFiles, advance: Callable[[int], None]
) -> None:
    buffer = np.empty(COPIED, np.uint8)
    for name in order:
        slot = source.slots[name]
        part = buffer.view(NUMPY_DTYPES[slot.dtype])
        for start in range(0, slot.num_elements, part.size):
            out = part[: slot.num_elements - start]
            source.read_into(name, start, out)
            files.write(name, start, out)
            advance(out.nbytes)


def _unpickle(
    tensors: Mapping[str, torch.Tensor],
    order: Sequence[str],
    files: TensorFiles,
    paths: Sequence[Path],
    advance: Callable[[int], None],
) -> None:
    mappings = [mapping for path in paths for mapping in mappings_of(path)]
    for name in order:
        array = flat_array(tensors[name])
        files.write(name, 0, array)
        advance(array.nbytes)
        release(tensors[name], mappings)
