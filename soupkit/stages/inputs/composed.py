"""References that stand for more than one checkpoint: adapters on their bases, layers cut out and stacked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.compatible import architecture
from soupkit.checkpoint.config.companions import Reconfigured
from soupkit.checkpoint.dtypes import Array
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.quantized import scales_of
from soupkit.checkpoint.reference import local_path, open_checkpoint, open_references
from soupkit.checkpoint.source import Source
from soupkit.checkpoint.views.adapted import Adapted, Adapter, base_mismatch, is_adapter, open_adapter
from soupkit.checkpoint.views.dequantized import Dequantized
from soupkit.checkpoint.views.resized import Resized
from soupkit.checkpoint.views.stacked import Part, Stacked
from soupkit.checkpoint.views.view import checkpoint_of
from soupkit.errors import CompatibilityError, RecipeError, ReferenceError
from soupkit.events import Report, Told, Warned


@dataclass
class Composed:
    """What references stand for: how each is read, and the checkpoints that are recorded.

    names: what each view is called. groups: per view, the places of its checkpoints in `recorded`: a model,
    an adapter alone, or a model and the adapter on it.
    """

    recorded: list[Checkpoint] = field(default_factory=list)
    views: list[Source] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    groups: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, name: str, view: Source, *checkpoints: Checkpoint) -> None:
        """One more view, made of some checkpoints."""
        self.names.append(name)
        self.views.append(view)
        self.groups.append(tuple(map(self._place, checkpoints)))

    def _place(self, checkpoint: Checkpoint) -> int:
        """Where it is recorded: once, however often it is read."""
        files = [file.resolve() for file in checkpoint.files]
        for place, known in enumerate(self.recorded):
            if [file.resolve() for file in known.files] == files:
                return place
        self.recorded.append(checkpoint)
        return len(self.recorded) - 1


def open_models(references: Sequence[str], base: str | None, report: Report) -> Composed:
    """Open ingredients, and the base last where there is one; adapters alone go onto the base, or onto their
    own."""
    found, under = Composed(), Composed()
    if base is not None:
        _add(base, None, under, report)
    for reference in references:
        _add(reference, under.views[0] if under.views else None, found, report)
    if base is not None:
        found.add(base, under.views[0], *under.recorded)
    return found


def _add(reference: str, base: Source | None, found: Composed, report: Report) -> None:
    model, adapter = split_adapter(reference)
    if adapter is None and is_adapter(Path(model).expanduser()):
        opened = open_adapter(Path(model).expanduser())
        under = base if base is not None else _plain(_base_by_name(opened.base_reference, model))
        found.add(reference, _onto(under, opened, reference, report), opened.weights)
    elif adapter is None:
        for checkpoint in open_references([reference]):
            found.add(checkpoint.reference, _plain(checkpoint), checkpoint)
    else:
        below, opened = open_checkpoint(model), open_adapter(Path(adapter).expanduser())
        found.add(reference, _onto(_plain(below), opened, reference, report), below, opened.weights)


def split_adapter(reference: str) -> tuple[str, str | None]:
    """`MODEL+ADAPTER` in its two, where what follows a plus is a PEFT directory; anything else is one
    reference."""
    if local_path(reference).exists():
        return reference, None
    for place in (found.start() for found in re.finditer(r"\+", reference)):
        if place and is_adapter(local_path(reference[place + 1 :])):
            return reference[:place], reference[place + 1 :]
    return reference, None


def _onto(under: Source, adapter: Adapter, reference: str, report: Report) -> Source:
    """An adapter on a model, and a word where that is not the one that it was trained on."""
    ranks = sorted({len(factors.a) for factors in adapter.changes.values()})
    ranked = f"{len(adapter.changes)} changes of rank {', '.join(map(str, ranks))}"
    report(Told(f"{reference}: {ranked}, merged into {under.reference} as it is read"))
    if other := base_mismatch(adapter, under):
        report(Warned(other))
    return Adapted(under, adapter)


def _base_by_name(name: str, reference: str) -> Checkpoint:
    try:
        return open_checkpoint(name)
    except ReferenceError as error:
        raise ReferenceError(
            f"{reference}: its base model {name!r} cannot be opened: {error.message}",
            hint="give the base that it was trained on: --base REF",
        ) from error


def _plain(checkpoint: Checkpoint) -> Source:
    """The checkpoint, or what its quantized weights mean."""
    return Dequantized(checkpoint) if scales_of(checkpoint.slots) else checkpoint


# Layers


def cut_layers(views: Sequence[Source], texts: Sequence[str], stack: str | None) -> list[Source]:
    """The views with some of their layers only. Raises RecipeError for ranges that are none, or not one for
    each."""
    if not texts:
        return list(views)
    if len(texts) not in (1, len(views)):
        raise RecipeError(
            f"{len(texts)} layer ranges for {len(views)} checkpoints",
            hint="give one, or one for each and the base",
        )
    spread = list(texts) * len(views) if len(texts) == 1 else texts
    cut: list[Stacked] = []
    for view, text in zip(views, spread, strict=True):
        parts = [Part(view, *layer_range(each)) for each in text.split(",")]
        cut.append(Stacked(parts, reference=view.reference, stack=stack))
    depths = {stacked.num_layers for stacked in cut}
    if len(depths) > 1:
        raise RecipeError(
            f"layers: the ranges are of {', '.join(map(str, sorted(depths)))} layers, expected one depth"
        )
    return list(cut)


def layer_range(text: str) -> tuple[int, int]:
    """`0:8` → the first eight layers. Raises RecipeError."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*[:-]\s*(\d{1,9})\s*", text)
    if not match:
        raise RecipeError(f"layers {text!r}: expected START:STOP", hint="0:8 are the first eight layers")
    return int(match[1]), int(match[2])


# Configurations


def model_of(view: Mapping[str, Array], recorded: Source) -> Source:
    """Whose configuration and tokenizer describe a view of a recorded checkpoint."""
    source = view.source if isinstance(view, Resized) else view
    if isinstance(source, Stacked):
        inner = next(iter(source.places.values()))[0]
        return stacked_model(source, model_of(inner, recorded))
    if isinstance(source, Adapted):
        return model_of(source.base, checkpoint_of(source) or source.base)
    return Reconfigured(recorded, source.config) if isinstance(source, Dequantized) else recorded


def stacked_model(stacked: Stacked, model: Source) -> Source:
    """A model whose configuration is that of the stack."""
    return Reconfigured(model, stacked.described_by(model.config))


def open_config(reference: str, found: Composed, view: Source) -> Source:
    """The checkpoint whose configuration is to go along, for a view like `view`. Raises CompatibilityError
    where its tensors say that it describes another model."""
    known = dict(zip(found.names, zip(found.views, found.groups, strict=True), strict=True))
    if reference in known:
        source, group = known[reference]
        model = model_of(source, found.recorded[group[0]])
    else:
        model = open_checkpoint(split_adapter(reference)[0])
    first = next(iter(known.values()))[0]
    kinds = architecture(model), architecture(first)
    if all(kinds) and kinds[0] != kinds[1]:
        raise CompatibilityError(f"config_from {reference}: is a {kinds[0]}, the checkpoints are {kinds[1]}")
    if reference not in known:
        _check_shapes(reference, model.slots, view)
    return stacked_model(view, model) if isinstance(view, Stacked) else model


def _check_shapes(reference: str, slots: Mapping[str, Slot], view: Source) -> None:
    for name, slot in view.slots.items():
        if name in slots and slots[name].shape != slot.shape:
            raise CompatibilityError(
                f"config_from {reference}: tensor {name!r} has shape {list(slots[name].shape)}, the "
                f"checkpoints have {list(slot.shape)}: its configuration describes another model"
            )
