"""Where tensors are in what a training program saved: nested containers, walked, and reached by a key such as
a.b."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeGuard

from soupkit.errors import CheckpointError

NOT_WEIGHTS = re.compile(
    r"(^|_)(optim(?!al|um)|sched|scaler|amp(_|$)|callbacks?|loops?|queue|criterion|loss)"
)
"""What is not searched for a model's tensors; `--key` may name it all the same."""
COUNTERS = ("n_averaged", "steps", "num_updates", "step", "initted", "decay")
"""What wrappers that average count, beside the model's own tensors: torch, mmengine, timm, ema-pytorch,
LitEma."""
DEPTH, DEEPEST = 4, 24
MOST_LISTED = 10
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_MOMENTS = {"exp", "sq", "square", "grad"}
"""What optimizers average: exp_avg_sq, square_avg, grad_avg."""
_AVERAGED = {"ema", "avg", "average", "averaged", "swa", "shadow", "polyak"}


class Shaped(Protocol):
    """A tensor of torch, or one that stays on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> object: ...


@dataclass(frozen=True)
class Place:
    """Tensors by name, and the names of what else stood among them."""

    tensors: Mapping[str, Shaped]
    left_out: tuple[str, ...] = ()


def says_averaged(name: str) -> bool:
    """Whether a word of a key or of a module's name says average: ema_model, avg_model, modelEMA."""
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _AVERAGED) and not words & _MOMENTS


def state_dicts(value: object) -> dict[str, Place]:
    """{keys with dots: the tensors there} for what a model may be loaded from; deep down only where nothing
    is above.

    Extra state of modules may stand among the tensors, and is left out; anything else makes it no state dict.
    """
    return dict(_clean_places(value, "", DEPTH)) or dict(_clean_places(value, "", DEEPEST))


def _clean_places(value: object, where: str, depth: int) -> Iterator[tuple[str, Place]]:
    if not isinstance(value, Mapping) or not depth:
        return
    place = tensors_of(value)
    if place.tensors and all(is_extra_state(name) for name in place.left_out):
        if not all(name in COUNTERS for name in place.tensors):
            yield where, place
        return
    for key, inner in value.items():
        if isinstance(key, str) and not NOT_WEIGHTS.search(key.lower()):
            yield from _clean_places(inner, _joined(where, key), depth - 1)


def every_place(value: object, where: str = "", depth: int = DEEPEST) -> Iterator[tuple[str, Place]]:
    """Every container with at least one tensor of its own, wherever it is."""
    if not depth:
        return
    if isinstance(value, Mapping):
        place = tensors_of(value)
        if place.tensors:
            yield where, place
    for key, inner in _items(value):
        yield from every_place(inner, _joined(where, str(key)), depth - 1)


def nameless_averages(value: object) -> list[str]:
    """Keys of averages that are kept as lists, without names, as torch_ema's shadow_params; to a depth of
    three."""
    found = []
    for key, inner in _items(value):
        for name, item in [(str(key), inner), *((f"{key}.{name}", item) for name, item in _items(inner))]:
            listed = isinstance(item, list | tuple) and item and all(map(is_tensor, item))
            if listed and says_averaged(name):
                found.append(name)
    return found


def tensors_of(value: Mapping[object, object]) -> Place:
    """The tensors of one mapping; left out is what is no tensor, has no name, or is a module's extra
    state."""
    tensors = {
        key: item
        for key, item in value.items()
        if isinstance(key, str) and is_tensor(item) and not is_extra_state(key)
    }
    return Place(tensors, tuple(str(key) for key in value if key not in tensors))


def is_tensor(value: object) -> TypeGuard[Shaped]:
    """Whether this is a tensor, in memory or on disk."""
    return isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype")


def is_extra_state(name: str) -> bool:
    """Whether a name is that of what Module.get_extra_state returned."""
    return name.rpartition(".")[2] == "_extra_state"


def at_key(value: object, key: str, path: Path) -> Place:
    """The tensors at an explicit key, at any depth: keys with dots between them, numbers for places in a
    list.

    "" and "." are the file itself. Raises CheckpointError, naming where tensors are, when there are none.
    """
    for inner in _reached(value, "" if key == "." else key):
        if isinstance(inner, Mapping) and (place := tensors_of(inner)).tensors:
            return place
    raise _no_such_place(value, key, path)


def _reached(value: object, key: str) -> Iterator[object]:
    """What a key may mean: parts of it may have dots of their own."""
    if not key:
        yield value
    for part, inner in _items(value):
        name = str(part)
        if key == name:
            yield inner
        elif key.startswith(f"{name}."):
            yield from _reached(inner, key[len(name) + 1 :])


def _items(value: object) -> Iterator[tuple[object, object]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _no_such_place(value: object, key: str, path: Path) -> CheckpointError:
    likely = state_dicts(value)
    others = (place for place, _ in every_place(value) if place not in likely and place != key)
    places = [place for place in [*likely, *others] if place != key]
    if not places:
        return CheckpointError(
            f"{path}: holds no state dict at {key!r}: there is no named tensor anywhere in it; "
            f"{described(value)}",
            hint="save the state dict with torch.save(model.state_dict(), PATH) in the program that "
            "wrote this file",
        )
    return CheckpointError(
        f"{path}: holds no state dict at {key!r}; there are {listed(places)}",
        hint=f"for example {key_option(places[0])}",
    )


def key_option(place: str) -> str:
    """How a place is given on the command line."""
    quoted = f"'{place}'" if re.search(r"[^\w.-]", place) else place
    return f"--key {quoted or '.'}"


def listed(places: Sequence[str]) -> str:
    """Places for a message, the first ten by name."""
    names = [place or "the file itself" for place in places[:MOST_LISTED]]
    more = len(places) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def described(value: object) -> str:
    """What an unpickled value is, for a message."""
    if not isinstance(value, Mapping):
        return f"it is a {type(value).__name__}"
    if not value:
        return "it is empty"
    parts = [f"{key}: {type(item).__name__}" for key, item in list(value.items())[:8]]
    return f"its keys are {', '.join(parts)}"
