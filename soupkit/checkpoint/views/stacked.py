"""Frankenmerges: a model made of layer ranges of other models, as a lazy mapping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from soupkit.checkpoint.config.restacked import Origin, stacked_config
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.source import config_of, name_of, read_chunk, slots_of
from soupkit.checkpoint.views.view import View, record_of, stored_slots
from soupkit.errors import CompatibilityError, RecipeError
from soupkit.jsons import Json, JsonView
from soupkit.recipe.parse import whole_number
from soupkit.recipe.settings import BEFORE


@dataclass(frozen=True)
class Part:
    """Layers start … stop − 1 of a checkpoint."""

    source: Mapping[str, Array]
    start: int
    stop: int


class Stacked(View):
    """The layers of some parts, one after the other and numbered anew; what stands before the layers
    (embeddings) comes from the first part's checkpoint, what stands after from the last's."""

    def __init__(self, parts: Sequence[Part], *, reference: str, stack: str | None = None) -> None:
        self.stack = main_stack(parts[0].source) if stack is None else stack
        self.sources = list({id(part.source): part.source for part in parts}.values())
        self.num_layers = sum(part.stop - part.start for part in parts)
        self.places = _places(parts, self.stack)
        self.parts = tuple(parts)
        super().__init__(
            *self.sources,
            reference=reference,
            slots={name: slots_of(source)[own] for name, (source, own) in self.places.items()},
            stored={name: stored_slots(source)[own] for name, (source, own) in self.places.items()},
            config=stacked_description(parts, self.stack),
        )
        self.ties = {}

    def record(self) -> Json:
        """The layers of each part."""
        return {
            "parts": [{**record_of(each.source), "layers": [each.start, each.stop]} for each in self.parts]
        }

    def described_by(self, config: JsonView) -> Json:
        """The configuration of the stack where that of another model is to go along: layers are still as they
        were."""
        return stacked_description(self.parts, self.stack, config=config)

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` with the elements of `name` from number `start` on."""
        source, own = self.places[name]
        read_chunk(source, own, start, out)


def _places(parts: Sequence[Part], stack: str) -> dict[str, tuple[Mapping[str, Array], str]]:
    places: dict[str, tuple[Mapping[str, Array], str]] = {}
    for part, outside in ((parts[0], True), (parts[-1], False)):
        for name in part.source:
            if layer_in(name, stack) is None and bool(BEFORE.search(name)) is outside:
                places[name] = (part.source, name)
    offset = 0
    for part in parts:
        found = {layer for name in part.source if (layer := layer_in(name, stack)) is not None}
        missing = [layer for layer in range(part.start, part.stop) if layer not in found]
        if missing or part.start >= part.stop:
            raise CompatibilityError(
                f"{name_of(part.source, 0)}: has no layers {part.start} to {part.stop - 1} of {stack!r}",
                hint=f"its layers are 0 to {max(found, default=-1)}",
            )
        for name in part.source:
            layer = layer_in(name, stack)
            if layer is not None and part.start <= layer < part.stop:
                renamed = f"{stack}.{layer - part.start + offset}{name[len(f'{stack}.{layer}') :]}"
                places[renamed] = (part.source, name)
        offset += part.stop - part.start
    return places


def layer_in(name: str, stack: str) -> int | None:
    """The layer of a stack that a tensor belongs to; None outside it."""
    if not name.startswith(f"{stack}."):
        return None
    number = name[len(stack) + 1 :].split(".")[0]
    return whole_number(number)


def main_stack(source: Mapping[str, Array]) -> str:
    """The prefix under which most layers are numbered. Raises RecipeError when two are alike or there is
    none."""
    layers: dict[str, set[int]] = {}
    for name in source:
        parts = name.split(".")
        place = next((place for place, part in enumerate(parts) if whole_number(part) is not None), 0)
        if place:
            layers.setdefault(".".join(parts[:place]), set()).add(int(parts[place]))
    ranked = Counter({stack: len(numbers) for stack, numbers in layers.items()}).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        known = ", ".join(f"{stack} ({count})" for stack, count in ranked) or "none"
        raise RecipeError(
            f"which layers to stack is not clear (numbered: {known})", hint="say it: --stack model.layers"
        )
    return ranked[0][0]


def stacked_description(parts: Sequence[Part], stack: str, *, config: JsonView | None = None) -> Json:
    """The configuration of the stack; see `soupkit.checkpoint.config.restacked.stacked_config`.

    config: what describes all but the layers, that of the first part's model where None. Raises
    CompatibilityError for layers that would not fit where they come to stand: of other shapes, or made by the
    rule of another place.
    """
    shapes = [_layer_shapes(part.source, stack) for part in parts]
    origins = [
        Origin(config_of(part.source), max(found, default=-1) + 1, part.start, part.stop)
        for part, found in zip(parts, shapes, strict=True)
    ]
    if config is not None:
        origins[0] = replace(origins[0], config=config)
    found, told = stacked_config(origins, stack)
    _check_shapes(parts, shapes, told if found else None, stack)
    return found


Shapes = dict[str, tuple[int, ...]]
Place = tuple[int, int]


def _layer_shapes(source: Mapping[str, Array], stack: str) -> dict[int, Shapes]:
    """{layer: {name within it: shape}}."""
    found: dict[int, Shapes] = {}
    for name, slot in slots_of(source).items():
        layer = layer_in(name, stack)
        if layer is not None:
            found.setdefault(layer, {})[name[len(f"{stack}.{layer}") :]] = slot.shape
    return found


def _check_shapes(
    parts: Sequence[Part],
    shapes: Sequence[dict[int, Shapes]],
    told: Sequence[Sequence[object]] | None,
    stack: str,
) -> None:
    names = [name_of(part.source, place) for place, part in enumerate(parts)]
    for (part, layer), (other_part, other) in _alike(parts, shapes, told):
        mine, its = shapes[part][layer], shapes[other_part][other]
        if mine != its:
            name = min(dict(mine.items() ^ its.items()))
            raise CompatibilityError(
                f"layer {other} of {names[other_part]} has {_shown(its.get(name))} as {stack}.{other}{name}, "
                f"layer {layer} of {names[part]} has {_shown(mine.get(name))}, and the configuration does "
                "not say why: in the stack one of them would not be loaded",
                hint="take each layer in its own place, or layers that are alike",
            )


def _alike(
    parts: Sequence[Part], shapes: Sequence[dict[int, Shapes]], told: Sequence[Sequence[object]] | None
) -> Iterator[tuple[Place, Place]]:
    """Pairs of layers that must have the same tensors: those of which the configuration says the same.

    The first layer of all may have its own (T5's relative positions); where every layer keeps its place, or
    nothing is said of any, those with the same number.
    """
    places = [(part, layer) for part, each in enumerate(parts) for layer in range(each.start, each.stop)]
    if told is None or all(layer == number for number, (_, layer) in enumerate(places)):
        yield from (((0, layer), (part, layer)) for part, layer in places if layer in shapes[0])
        return
    first_apart = [layer == 0 for _, layer in places] == [True] + [False] * (len(places) - 1)
    known: dict[object, Place] = {}
    for part, found in enumerate(shapes):
        for layer in found:
            key = (told[part][layer], first_apart and layer == 0)
            yield known.setdefault(key, (part, layer)), (part, layer)


def _shown(shape: tuple[int, ...] | None) -> str:
    return "no tensor" if shape is None else f"shape {list(shape)}"
