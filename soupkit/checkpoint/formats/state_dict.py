"""The state dict in what a training program saved: the trained weights, or their average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from soupkit.checkpoint.formats.inner_average import InnerAverage, find_inner_average
from soupkit.checkpoint.formats.places import (
    Place,
    Shaped,
    at_key,
    described,
    every_place,
    key_option,
    listed,
    nameless_averages,
    says_averaged,
    state_dicts,
)
from soupkit.checkpoint.formats.shards import refuse_shard
from soupkit.errors import CheckpointError

Prefer = Literal["auto", "ema", "raw"]
Kind = Literal["averaged", "raw", "plain"]

KNOWN = (
    "state_dict",
    "model_state_dict",
    "model",
    "model_state",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
"""Where training programs put the weights, most telling first; the same with `ema` in it holds their
average."""


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, `where` they were (dots between keys, empty for the file itself), and other such
    places.

    kind: averaged or raw in a file that holds both or says so, plain in one that knows no average. notes:
    what the reader should know of the choice.
    """

    tensors: Mapping[str, Shaped]
    where: str
    others: tuple[str, ...] = ()
    kind: Kind = "plain"
    notes: tuple[str, ...] = ()


def find_state_dict(
    value: object, path: Path, *, key: str | None = None, prefer: Prefer = "auto", renamed: Sequence[str] = ()
) -> StateDict:
    """The weights in an unpickled value: at `key` ("a.b"), or the one place where a model's tensors are.

    prefer: auto takes averaged (EMA) weights where there are any, ema insists on them, raw on the others.
    renamed: prefixes that the caller takes care of, which are then left alone. Raises CheckpointError, naming
    the places, when there is no telling which is meant.
    """
    refuse_shard(value, path)
    found = state_dicts(value)
    if key is not None:
        place = at_key(value, key, path)
        roles = _roles(value, {**found, key: place})
        others = tuple(other for other in found if other not in (key, "" if key == "." else key))
        return _without_inner(_taken(place, key, others, roles[key]), path, prefer, renamed)
    roles = _roles(value, found)
    if not found:
        raise _no_state_dict(value, path)
    if prefer == "ema" and "averaged" not in roles.values():
        found, roles = _deeper_average(value, found, roles)
    places = _wanted(found, roles, prefer, path)
    where = _best(places)
    if where is None:
        hint = f"choose one: {key_option(places[0])}"
        raise CheckpointError(f"{path}: holds {len(places)} state dicts: {listed(places)}", hint=hint)
    taken = _taken(found[where], where, tuple(place for place in found if place != where), roles[where])
    notes = () if roles[where] == "averaged" or prefer == "raw" else _unreachable(value, found)
    return _without_inner(replace(taken, notes=taken.notes + notes), path, prefer, renamed)


def _taken(place: Place, where: str, others: tuple[str, ...], kind: Kind) -> StateDict:
    notes: tuple[str, ...] = ()
    if place.left_out:
        shown, more = ", ".join(place.left_out[:3]), len(place.left_out) - 3
        notes = (f"left out {shown}{f' and {more} more' if more > 0 else ''}: not tensors of the model",)
    if kind == "averaged" and not any(says_averaged(part) for part in where.split(".")):
        notes += (f"{where} is the average in files of this program (mmengine, Lightning)",)
    return StateDict(place.tensors, where, others, kind, notes)


def _roles(value: object, found: Mapping[str, Place]) -> dict[str, Kind]:
    """Which places are averages. Two programs swap them when they save, so that the usual key holds the
    average.

    mmengine (EMAHook.before_save_checkpoint): `ema_state_dict` then holds the trained weights, with `steps`
    and `module.`; Lightning (WeightAveraging.on_save_checkpoint): `current_model_state` holds them.
    """
    averaged = {place for place in found if any(says_averaged(part) for part in place.split("."))}
    raw = set(found) - averaged
    if _is_mmengine(value, found):
        averaged, raw = {"state_dict"}, {"ema_state_dict"}
    elif {"state_dict", "current_model_state"} <= found.keys():
        averaged, raw = averaged | {"state_dict"}, raw - {"state_dict"}
    return {
        place: "averaged" if place in averaged else "raw" if averaged and place in raw else "plain"
        for place in found
    }


def _is_mmengine(value: object, found: Mapping[str, Place]) -> bool:
    if not {"state_dict", "ema_state_dict"} <= found.keys():
        return False
    names = found["ema_state_dict"].tensors
    meta = value.get("meta") if isinstance(value, Mapping) else None
    wrapped = "steps" in names and all(name == "steps" or name.startswith("module.") for name in names)
    return wrapped or (isinstance(meta, Mapping) and "mmengine_version" in meta)


def _wanted(found: Mapping[str, Place], roles: Mapping[str, Kind], prefer: Prefer, path: Path) -> list[str]:
    averaged = [place for place in found if roles[place] == "averaged"]
    others = [place for place in found if roles[place] != "averaged"]
    if prefer == "raw":
        others = others or [place for place in averaged if _wraps_both(found[place])]
        if not others:
            raise CheckpointError(
                f"{path}: holds averaged (EMA) weights only, at {listed(averaged)}",
                hint="leave --prefer raw out",
            )
        return others
    return averaged or others


def _wraps_both(place: Place) -> bool:
    inner = find_inner_average(_shapes(place.tensors))
    return inner is not None and bool(inner.raw_prefix)


def _shapes(tensors: Mapping[str, Shaped]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _deeper_average(
    value: object, found: dict[str, Place], roles: dict[str, Kind]
) -> tuple[dict[str, Place], dict[str, Kind]]:
    """The averages that callbacks keep, where nobody searches who does not ask for an average."""
    hidden = _hidden_averages(value, found)
    return {**found, **hidden}, {**roles, **dict.fromkeys(hidden, "averaged")}


def _hidden_averages(value: object, found: Mapping[str, Place]) -> dict[str, Place]:
    return {
        where: place
        for where, place in every_place(value)
        if where not in found and len(place.tensors) > max(1, len(place.left_out)) and says_averaged(where)
    }


def _unreachable(value: object, found: Mapping[str, Place]) -> tuple[str, ...]:
    """What to say of averages that are there and were not taken."""
    hidden = list(_hidden_averages(value, found))
    notes = [f"an average is at {listed(hidden)} (--prefer ema, --key)"] if hidden else []
    nameless = nameless_averages(value)
    if nameless:
        notes.append(
            f"{listed(nameless)} is an average without names, which only the program that made it can load"
        )
    return tuple(notes)


def _without_inner(taken: StateDict, path: Path, prefer: Prefer, renamed: Sequence[str]) -> StateDict:
    """Deal with an average inside the state dict that was taken. Raises CheckpointError when `prefer` cannot
    be met."""
    inner = find_inner_average(_shapes(taken.tensors))
    if inner is None or any(
        inner.prefix.startswith(each) or each.startswith(inner.prefix) for each in renamed
    ):
        if prefer == "ema" and taken.kind != "averaged" and inner is None:
            raise CheckpointError(
                f"{path}: holds no averaged (EMA) weights; there are {listed([taken.where, *taken.others])}",
                hint="leave --prefer ema out",
            )
        return taken
    if inner.raw_prefix is not None:
        return _unwrapped(taken, inner, path, prefer)
    if prefer == "auto":
        said = (
            f"holds {len(inner.targets)} tensors {inner.prefix}… beside those that they average; "
            f"both were taken"
        )
        options = "--prefer raw, --prefer ema" if inner.is_certain else f"--drop {inner.prefix}"
        return replace(taken, notes=(*taken.notes, f"{said} ({options})"))
    if not inner.is_certain:
        raise CheckpointError(
            f"{path}: holds {len(inner.targets)} pairs such as {_pair(inner)}, and names do not tell which "
            "is the average: mmcv 1 swaps them before saving or not, by the priority of its hook",
            hint=f"leave --prefer out; --drop {inner.prefix} takes those under the model's own names",
        )
    return _chosen(taken, inner, prefer)


def _pair(inner: InnerAverage) -> str:
    average, original = next(iter(inner.targets.items()))
    return f"{average} and {original}"


def _chosen(taken: StateDict, inner: InnerAverage, prefer: Prefer) -> StateDict:
    """The model with its trained weights, or with the averages in their places; what has none stays."""
    gone = {*inner.targets, *inner.counters}
    tensors = {name: tensor for name, tensor in taken.tensors.items() if name not in gone}
    if prefer == "ema":
        tensors |= {original: taken.tensors[name] for name, original in inner.targets.items()}
    said = "put in their places" if prefer == "ema" else "left out"
    note = f"{len(inner.targets)} averages {inner.prefix}… were {said}"
    return replace(
        taken, tensors=tensors, kind="averaged" if prefer == "ema" else "raw", notes=(*taken.notes, note)
    )


def _unwrapped(taken: StateDict, inner: InnerAverage, path: Path, prefer: Prefer) -> StateDict:
    """The average, or the model that it follows, out of a wrapper that holds both."""
    if prefer == "raw" and not inner.raw_prefix:
        raise CheckpointError(
            f"{path}: holds averaged (EMA) weights only, {inner.prefix}…", hint="leave --prefer raw out"
        )
    prefix = (inner.raw_prefix or "") if prefer == "raw" else inner.prefix
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in taken.tensors.items() if name.startswith(prefix)
    }
    other = inner.prefix if prefer == "raw" else inner.raw_prefix
    note = f"took {prefix}…" + (f"; the file also holds {other}… (--prefer)" if other else "")
    return replace(
        taken, tensors=tensors, kind="raw" if prefer == "raw" else "averaged", notes=(*taken.notes, note)
    )


def _best(places: Sequence[str]) -> str | None:
    """The only place, or the one with the most telling name."""
    if len(places) == 1:
        return places[0]
    names = [_plain(place.partition(".")[0]) for place in places]
    ranks = [KNOWN.index(name) if name in KNOWN else len(KNOWN) for name in names]
    best = min(ranks)
    return places[ranks.index(best)] if best < len(KNOWN) and ranks.count(best) == 1 else None


def _plain(name: str) -> str:
    """A key without the words that say average."""
    return "_".join(part for part in name.split("_") if part and not says_averaged(part))


def _no_state_dict(value: object, path: Path) -> CheckpointError:
    """Nothing was found by itself; a key may reach what is mixed with other things."""
    places = dict(every_place(value))
    if not places:
        return CheckpointError(
            f"{path}: holds no state dict: {described(value)}",
            hint="save the state dict with torch.save(model.state_dict(), PATH) in the program that "
            "wrote this file",
        )
    where, place = max(places.items(), key=lambda item: len(item[1].tensors))
    left = f" and leaves out {', '.join(place.left_out[:3])}" if place.left_out else ""
    return CheckpointError(
        f"{path}: holds no state dict: {described(value)}; tensors are at {listed(list(places))}",
        hint=f"{key_option(where)} takes {len(place.tensors)} tensors{left}",
    )
