"""Which files of a directory hold its weights, and which configure them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soupkit.checkpoint.config.modules import module_files
from soupkit.checkpoint.config.pipelines import component_files, component_folders, is_weights
from soupkit.checkpoint.formats.foreign import folder_hint, refuse_foreign
from soupkit.checkpoint.formats.state_dict import Kind
from soupkit.checkpoint.header import (
    Header,
    Identity,
    TensorSpec,
    check_regular,
    identity_of,
    read_header,
)
from soupkit.checkpoint.spread import Spread
from soupkit.errors import CheckpointError, ReferenceError
from soupkit.jsons import Json, JsonView

ReadHeaders = Callable[[Sequence[Path]], list[Header]]
INDEX_SUFFIX = ".safetensors.index.json"
CONFIG_NAMES = ("open_clip_config.json", "config.json")
COMPANION_SUFFIXES = (
    ".json",
    ".txt",
    ".model",
    ".tiktoken",
    ".jinja",
    ".yaml",
    ".yml",
    ".py",
    ".bpe",
    ".vocab",
)
NOT_COMPANIONS = (
    "soupkit.json",
    "trainer_state.json",
    "training_args.json",
    "scores.json",
    "adapter_config.json",
    "zero_to_fp32.py",
    "latest_checkpointed_iteration.txt",
)


@dataclass(frozen=True)
class Layout:
    """The files that hold the weights, what their headers say, and which files those were at the time.

    Of another program's files: spreads: where the numbers of tensors lie that are in pieces; ties: {name: the
    name that it shares its bytes with}; read: what a manifest says of how they were read; notes: what to
    tell.
    """

    directory: Path
    files: tuple[Path, ...]
    specs: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    identities: Mapping[Path, Identity]
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    read: JsonView = field(default_factory=dict)
    kind: Kind = "plain"
    parts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_layout(path: Path) -> Layout:
    """Find the weights of a directory or file and read every header. Raises ReferenceError,
    CheckpointError."""
    is_file = os.path.isfile(path)  # noqa: PTH113  (False for a name too long)
    if is_file:
        refuse_foreign(path)
    weights = path if is_file else find_weights(path)
    return layout_of(weights, names=_listed(weights.parent))


def read_parts(directory: Path) -> Layout | None:
    """The layout of a pipeline of diffusers: tensors of a component `unet` are called `unet/…`. None for any
    other directory, and for a pipeline without safetensors. Raises ReferenceError, CheckpointError."""
    folders = [name for name in component_folders(directory) if any((directory / name).glob("*.safetensors"))]
    if not folders:
        return None
    layouts = {f"{name}/": read_layout(directory / name) for name in folders}
    return Layout(
        directory,
        tuple(file for layout in layouts.values() for file in layout.files),
        {prefix + name: spec for prefix, each in layouts.items() for name, spec in each.specs.items()},
        {"format": "pt"}
        | {
            prefix + dropped: prefix + kept
            for prefix, each in layouts.items()
            for dropped, kept in each.metadata.items()
            if kept in each.specs
        },
        {file: identity for each in layouts.values() for file, identity in each.identities.items()},
        parts={prefix: _whole_name(prefix, each.files[0].name) for prefix, each in layouts.items()},
    )


def _whole_name(prefix: str, name: str) -> str:
    """The file of a component's weights, without the number of a shard."""
    return f"{prefix}{name.removesuffix('.safetensors').partition('-0')[0]}.safetensors"


def read_headers(files: Sequence[Path]) -> list[Header]:
    """The headers of files on this disk."""
    return [read_header(file) for file in files]


def layout_of(weights: Path, *, names: Collection[str], read: ReadHeaders = read_headers) -> Layout:
    """The layout of a weight file or shard index among the file `names` of its folder; `read` gives files'
    headers."""
    if not weights.name.endswith(INDEX_SUFFIX):
        return _read_files(weights.parent, (weights,), read)
    return _read_index(weights, names, read)


def find_weights(directory: Path) -> Path:
    """The weight file or shard index of a directory. Raises ReferenceError when there is none or no telling
    which."""
    return directory / choose_weights(_listed(directory), str(directory))


def _listed(directory: Path) -> set[str]:
    """What lies in a directory. Raises ReferenceError when it cannot be told."""
    try:
        return _names_in(directory)
    except OSError as error:
        raise ReferenceError(
            f"{directory}: cannot be read: {error.strerror}", hint="check the path"
        ) from error
    except ValueError as error:  # a zero in the name, as a manifest or a recipe may hold one
        raise ReferenceError(
            f"{str(directory)!r}: cannot be a path: {error}", hint="check the path"
        ) from error


def _names_in(directory: Path) -> set[str]:
    """What lies in a directory; when a writer put another in its place meanwhile, what lies in that one."""
    before = directory.stat().st_ino
    names = {path.name for path in directory.iterdir()}
    return names if directory.stat().st_ino == before else _names_in(directory)


def choose_weights(names: Collection[str], where: str, *, separator: str = "/", globs: bool = True) -> str:
    """The weight file or shard index among the file names of the folder `where`, on disk or on the Hub.

    Raises ReferenceError when there is none or no telling which. separator: stands between `where` and a file
    in a reference; globs: whether references may hold patterns.
    """
    if "adapter_config.json" in names:
        raise ReferenceError(
            f"{where}: is a LoRA adapter, not a checkpoint",
            hint="merge the adapter into its base model first (peft: merge_and_unload) and save that",
        )
    preferred = ["model.safetensors", "open_clip_model.safetensors", "diffusion_pytorch_model.safetensors"]
    if CONFIG_NAMES[0] in names:
        preferred[:2] = reversed(preferred[:2])
    indexes = sorted(name for name in names if name.endswith(INDEX_SUFFIX))
    singles = [name for name in preferred if name in names]
    if singles and f"{singles[0].removesuffix('.safetensors')}{INDEX_SUFFIX}" in indexes:
        raise ReferenceError(
            f"{where}: holds both {singles[0]} and shards of the same name",
            hint=f"remove the stale one, or refer to the file you mean: {where}{separator}{singles[0]}",
        )
    found = singles[:1] or indexes or sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        every = "" if not globs else f", or to all of them as checkpoints: '{where}/*.safetensors'"
        raise ReferenceError(
            f"{where}: holds {len(found)} candidates for its weights ({', '.join(found[:5])})",
            hint=f"refer to one file, for example {where}{separator}{found[0]}{every}",
        )
    raise ReferenceError(f"{where}: holds no .safetensors file", hint=folder_hint(names, Path(where)))


def _read_files(directory: Path, files: tuple[Path, ...], read: ReadHeaders) -> Layout:
    headers = read(files)
    specs: dict[str, TensorSpec] = {}
    metadata: dict[str, str] = {}
    for header in headers:
        for name, spec in header.specs.items():
            if name in specs:
                raise CheckpointError(
                    f"{spec.file}: tensor {name!r} stands in {specs[name].file.name} too",
                    hint="remove the stale shard",
                )
            specs[name] = spec
        metadata.update(header.metadata)
    identities = {file: each.identity for file, each in zip(files, headers, strict=True) if each.identity}
    for file, identity in identities.items():
        check_same(file, identity, file.stat)
    return Layout(directory, files, specs, metadata, identities)


def check_same(file: Path, identity: Identity | None, status: Callable[[], os.stat_result]) -> None:
    """Raise CheckpointError when a file is no longer the one whose header was read: another writer replaced
    it."""
    try:
        same = identity is None or identity_of(status()) == identity
    except FileNotFoundError:
        same = False
    if not same:
        raise CheckpointError(
            f"{file}: was replaced, changed or removed while it was read", hint="run it again"
        )


def _read_index(index: Path, there: Collection[str], read: ReadHeaders) -> Layout:
    """Read a sharded checkpoint; the index and the headers must tell the same."""
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if name not in there]
    if missing:
        raise CheckpointError(
            f"{index}: names {len(missing)} of {len(names)} shards that are not there, for example "
            f"{missing[0]}",
            hint="download the missing shards",
        )
    layout = _read_files(index.parent, tuple(index.parent / name for name in names), read)
    for name in sorted(weight_map.keys() | layout.specs.keys()):
        held = layout.specs[name].file.name if name in layout.specs else "no shard"
        if held != weight_map.get(name, "no shard"):
            raise CheckpointError(
                f"{index}: puts tensor {name!r} in {weight_map.get(name, 'no shard')}, but {held} holds it",
                hint="the index and the shards are not of one checkpoint; download or save them again",
            )
    return layout


def _weight_map(index: Path) -> dict[str, str]:
    try:
        check_regular(index)
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{index}: is not a shard index with a weight_map: {error!r}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: its weight_map is not a map from tensor to file")
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or file in ("", ".", "..")
            or "/" in file
            or "\\" in file
            or "\0" in file
        ):
            raise CheckpointError(
                f"{index}: puts tensor {name!r} in {file!r}, which is not the name of a file beside the "
                f"index",
                hint="a shard index may only name files in its own directory",
            )
    return weight_map


def read_config(directory: Path) -> tuple[str | None, Json]:
    """The name and content of a model's configuration file; (None, {}) when there is none."""
    for name in CONFIG_NAMES:
        if (directory / name).is_file():
            try:
                config = json.loads((directory / name).read_text(encoding="utf-8"))
            except OSError as error:
                raise CheckpointError(f"{directory / name}: cannot be read: {error.strerror}") from error
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{directory / name}: is not valid JSON: {error}") from error
            if not isinstance(config, dict):
                raise CheckpointError(f"{directory / name}: is not a JSON object")
            return name, config
    return None, {}


def companions(directory: Path) -> list[Path]:
    """The small files that travel with weights: configuration, tokenizer, templates, modelling code, licence,
    modules.

    Modelling code is copied as it lies there; soupkit never runs it. Raises CheckpointError for modules
    elsewhere.
    """
    own = [path for path in sorted(directory.iterdir()) if path.is_file() and is_companion(path.name)]
    beside = [path for path in component_files(directory) if is_companion(path.name) and not is_weights(path)]
    return [*own, *module_files(directory), *beside]


def is_companion(name: str) -> bool:
    """Whether a file of this name travels with the weights beside it."""
    if name.startswith(".") or name.endswith((INDEX_SUFFIX, ".bin.index.json")) or name in NOT_COMPANIONS:
        return False
    return name.endswith(COMPANION_SUFFIXES) or name.startswith(("LICENSE", "NOTICE"))
