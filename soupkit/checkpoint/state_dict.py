"""The state dict in what a training program saved, and its names as the model itself would have them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soupkit.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Prefer = Literal["auto", "ema", "raw"]

KNOWN = ("state_dict", "model_state_dict", "model", "model_state", "module", "net", "network", "weights", "params")
"""Where training programs put the weights, most telling first; the same with `ema` in it holds their average."""
NOT_WEIGHTS = re.compile(r"(^|_)(optim|sched|scaler|amp|callbacks?|loops?|queue|criterion|loss)")
EMA = re.compile(r"(^|_)(ema|averaged?|swa|shadow)(_|$)")
WRAPPERS = ("module.", "_orig_mod.")
"""Put before every name by DataParallel, DistributedDataParallel, AveragedModel; by torch.compile."""
COUNTERS = ("n_averaged",)
"""What AveragedModel counts beside the model's own tensors."""
DEPTH = 4


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, `where` they were (dots between keys, empty for the file itself), and other such places."""

    tensors: Mapping[str, torch.Tensor]
    where: str
    others: tuple[str, ...] = ()


def find_state_dict(value: Any, path: Path, *, key: str | None = None, prefer: Prefer = "auto") -> StateDict:
    """The weights in an unpickled value: at `key` ("a.b"), or the one place where a model's tensors are.

    prefer: auto takes averaged (EMA) weights where there are any, ema insists on them, raw takes the others.
    Raises CheckpointError, naming the places, when there is no telling which is meant.
    """
    found = dict(_places(value, "", DEPTH))
    if key is not None:
        if key not in found:
            raise _no_such_place(path, key, found)
        return StateDict(found[key], key, tuple(place for place in found if place != key))
    if not found:
        raise CheckpointError(
            f"{path}: holds no state dict: {_described(value)}", hint="name it with --key, if it does"
        )
    averaged = [place for place in found if any(EMA.search(part) for part in place.split("."))]
    raw = [place for place in found if place not in averaged]
    if prefer == "ema" and not averaged:
        raise CheckpointError(
            f"{path}: holds no averaged (EMA) weights; there are {_listed(found)}", hint="leave --prefer ema out"
        )
    places = averaged if averaged and prefer != "raw" else raw or averaged
    where = _best(places)
    if where is None:
        raise CheckpointError(
            f"{path}: holds {len(places)} state dicts: {_listed(places)}", hint=f"choose one: --key {places[0]}"
        )
    return StateDict(found[where], where, tuple(place for place in found if place != where))


def _places(value: Any, where: str, depth: int) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    """Every state dict in nested containers, with the keys that lead to it."""
    if not isinstance(value, Mapping) or not depth:
        return
    tensors = _tensors(value)
    if tensors:
        yield where, tensors
        return
    for key, inner in value.items():
        if isinstance(key, str) and not NOT_WEIGHTS.search(key.lower()):
            yield from _places(inner, f"{where}.{key}" if where else key, depth - 1)


def _tensors(value: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a mapping that holds nothing else (extra state of modules apart); empty when it is none."""
    import torch

    kept = {key: item for key, item in value.items() if not (isinstance(key, str) and key.endswith("_extra_state"))}
    if all(isinstance(key, str) and isinstance(item, torch.Tensor) for key, item in kept.items()):
        return kept
    return {}


def _best(places: Sequence[str]) -> str | None:
    """The only place, or the one with the most telling name."""
    if len(places) == 1:
        return places[0]
    names = [EMA.sub(r"\1", place.partition(".")[0]).strip("_") for place in places]
    ranks = [KNOWN.index(name) if name in KNOWN else len(KNOWN) for name in names]
    best = min(ranks)
    return places[ranks.index(best)] if best < len(KNOWN) and ranks.count(best) == 1 else None


def _no_such_place(path: Path, key: str, found: Mapping[str, Any]) -> CheckpointError:
    listed = f"there are {_listed(found)}" if found else "there is none anywhere"
    first = next(iter(found), "")
    hint = f"for example --key {first}" if first else "leave --key out"
    return CheckpointError(f"{path}: holds no state dict at {key!r}; {listed}", hint=hint)


def _listed(places: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(place or "the file itself" for place in places)


def _described(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"it is a {type(value).__name__}"
    if not value:
        return "it is empty"
    parts = [f"{key}: {type(item).__name__}" for key, item in list(value.items())[:8]]
    return f"its keys are {', '.join(parts)}"


def clean_names(
    tensors: Mapping[str, torch.Tensor], path: Path, *, strip: Sequence[str] = (), drop: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """Names without wrappers' prefixes and without `strip`; names that begin with one of `drop` are left out.

    `strip` applies to the names that begin with it, in the order given. Raises CheckpointError when a prefix fits no
    name or two names become one.
    """
    names = {name: name for name in tensors}
    names = _without_wrappers(names)
    for prefix in drop:
        kept = {old: new for old, new in names.items() if not new.startswith(prefix)}
        _check_fits(len(names) - len(kept), "drop", prefix, names, path)
        names = kept
    for prefix in strip:
        _check_fits(sum(new.startswith(prefix) for new in names.values()), "strip", prefix, names, path)
        names = {old: new.removeprefix(prefix) for old, new in names.items()}
        names = _without_wrappers(names)
    cleaned: dict[str, torch.Tensor] = {}
    for old, new in names.items():
        if new in cleaned or not new:
            raise CheckpointError(
                f"{path}: tensor {old!r} would be called {new!r}, as another is",
                hint="strip less, or --drop one of them",
            )
        cleaned[new] = tensors[old]
    return cleaned


def _without_wrappers(names: dict[str, str]) -> dict[str, str]:
    """A wrapper's prefix goes when every name has it."""
    own = {old: new for old, new in names.items() if new not in COUNTERS}
    for prefix in WRAPPERS:
        if own and all(new.startswith(prefix) for new in own.values()):
            return _without_wrappers({old: new.removeprefix(prefix) for old, new in own.items()})
    return names


def _check_fits(count: int, option: str, prefix: str, names: Mapping[str, str], path: Path) -> None:
    if not count:
        example = next(iter(names.values()), "")
        raise CheckpointError(
            f"{path}: no tensor's name begins with {prefix!r} (--{option})", hint=f"names look like {example!r}"
        )
