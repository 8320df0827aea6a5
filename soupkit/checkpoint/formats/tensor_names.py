"""The names of tensors as the model itself would have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from soupkit.checkpoint.formats.places import COUNTERS, Shaped
from soupkit.errors import CheckpointError
from soupkit.recipe.hub import parse_rename

Tensor = TypeVar("Tensor", bound=Shaped)

WRAPPERS = ("module.", "_orig_mod.")
"""Put before every name by DataParallel, DistributedDataParallel, AveragedModel; by torch.compile."""
INNER_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Put into names by torch.compile, activation checkpoints and FSDP of single blocks; no model has such a
name."""


def clean_names(
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    strip: Sequence[str] = (),
    drop: Sequence[str] = (),
    rename: Sequence[str] = (),
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Names without wrappers' prefixes and without `strip`, changed by `rename` (`s/PATTERN/REPLACEMENT/`, as
    sed has it), and what to tell of it; `drop` names are left out.

    `strip` applies to the names that begin with it, in the order given. Raises CheckpointError when a prefix
    fits no name, when two names become one, and for names that a safetensors file cannot hold.
    """
    names = _without_wrappers({name: name for name in tensors}, tensors)
    names, notes = _without_inner_wrappers(names, (*strip, *drop))
    for prefix in drop:
        kept = {old: new for old, new in names.items() if not new.startswith(prefix)}
        _check_fits(len(names) - len(kept), "drop", prefix, names, path)
        names = kept
    for prefix in strip:
        _check_fits(sum(new.startswith(prefix) for new in names.values()), "strip", prefix, names, path)
        names = {old: new.removeprefix(prefix) for old, new in names.items()}
        names = _without_wrappers(names, tensors)
    for text in rename:
        change = parse_rename(text)
        changed = {old: change(new) for old, new in names.items()}
        _check_fits(sum(changed[old] != new for old, new in names.items()), "rename", text, names, path)
        names = changed
    return _renamed(tensors, names, path), notes


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    cleaned: dict[str, Tensor] = {}
    for old, new in names.items():
        if new in cleaned or not new:
            raise CheckpointError(
                f"{path}: tensor {old!r} would be called {new!r}, as another is",
                hint="strip less, or --drop one of them",
            )
        if new == "__metadata__" or not _is_text(new):
            raise CheckpointError(
                f"{path}: a tensor is called {new!r}, a name that soupkit writes into no safetensors file",
                hint="leave it out with --drop, or rename it in the program that wrote this file",
            )
        cleaned[new] = tensors[old]
    return cleaned


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: half a surrogate pair cannot."""
    return name == name.encode("utf-8", "replace").decode("utf-8")


def _without_wrappers(names: dict[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """A wrapper's prefix goes when every name has it, and with it what the wrapper counts."""
    own = {
        old: new for old, new in names.items() if not (new in COUNTERS and math.prod(tensors[old].shape) == 1)
    }
    for prefix in WRAPPERS:
        if own and all(new.startswith(prefix) for new in own.values()):
            return _without_wrappers({old: new.removeprefix(prefix) for old, new in own.items()}, tensors)
    return names


def _without_inner_wrappers(
    names: dict[str, str], renamed: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What wrappers put into names goes too, if all names stay distinct and nobody else takes it off."""
    if any(part in INNER_WRAPPERS for prefix in renamed for part in prefix.split(".")):
        return names, ()
    plain = {
        old: ".".join(part for part in new.split(".") if part not in INNER_WRAPPERS)
        for old, new in names.items()
    }
    changed = [old for old in names if plain[old] != names[old]]
    if not changed:
        return names, ()
    parts = " and ".join(
        part for part in INNER_WRAPPERS if any(part in names[old].split(".") for old in changed)
    )
    if len(set(plain.values())) < len(plain):
        return names, (
            f"{len(changed)} names hold {parts}; without it two would be one, so they are as they were",
        )
    return plain, (f"took {parts} out of {len(changed)} of {len(names)} names",)


def _check_fits(count: int, option: str, prefix: str, names: Mapping[str, str], path: Path) -> None:
    if not count:
        example = next(iter(names.values()), "")
        fits = "is changed by" if option == "rename" else "begins with"
        raise CheckpointError(
            f"{path}: no tensor's name {fits} {prefix!r} (--{option})",
            hint=f"names look like {example!r}",
        )
