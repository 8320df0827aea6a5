"""From the references of a method's recipe to what is merged: checkpoints, adapters in their base, one vocabulary."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from soupkit.checkpoint.adapted import Adapted, is_adapter, open_adapter
from soupkit.checkpoint.checkpoint import Checkpoint, slots_of
from soupkit.checkpoint.companions import Reconfigured
from soupkit.checkpoint.compatible import Agreement, check_compatible
from soupkit.checkpoint.dequantized import Dequantized, scales_of
from soupkit.checkpoint.dtypes import FLOATING, Array, widest
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.reference import open_checkpoint, open_references
from soupkit.checkpoint.resized import Resized, match_vocabularies
from soupkit.checkpoint.stacked import Part, Stacked
from soupkit.errors import RecipeError, ReferenceError
from soupkit.events import Report, Told
from soupkit.jobs.soup import Ingredients, plan_soup
from soupkit.recipe.methods import MergePassthrough

View = Mapping[str, Array]


@dataclass(frozen=True)
class MethodInputs:
    """What a method merges and what is recorded of it; the base comes last in both where there is one.

    recorded: the checkpoints on disk or the Hub, as referred to. views: how they are read, in the same order.
    """

    ingredients: Ingredients
    views: Sequence[View]
    has_base: bool

    @property
    def models(self) -> Sequence[View]:
        """What is merged."""
        return self.views[:-1] if self.has_base else self.views

    def contents(self, hashes: Sequence[str], threads: int) -> list[str]:
        """The content of everything recorded, of which `hashes` tells that of the views."""
        recorded = self.ingredients.checkpoints
        known = {id(view): found for view, found in zip(self.views, hashes, strict=True)}
        return [known.get(id(source)) or content_hash(source, threads=threads) for source in recorded]

    @property
    def base(self) -> View | None:
        """What it is merged on."""
        return self.views[-1] if self.has_base else None


def open_inputs(recipe: Any, report: Report) -> MethodInputs:
    """Open references and base, put adapters into their base, settle vocabularies, check all of it, plan the output."""
    if isinstance(recipe, MergePassthrough):
        return _open_stacked(recipe, report)
    base_reference = getattr(recipe, "base", None)
    base = open_checkpoint(base_reference) if base_reference else None
    recorded, views = _open_models(recipe.refs, base, report)
    if base is not None:
        recorded, views = [*recorded, base], [*views, _plain(base)]
    model = _model_of(views[0], recorded[0])
    views, chosen = match_vocabularies(views, recipe.embedding)
    if chosen is not None:
        model = _model_of(views[chosen], recorded[chosen])
        report(Told(f"vocabulary: {recipe.embedding} to that of {recorded[chosen].reference}"))
    agreement = _as_stored(check_compatible(views), views)
    return MethodInputs(plan_soup(agreement, recorded, recipe, report, model=model), views, base is not None)


def _open_stacked(recipe: MergePassthrough, report: Report) -> MethodInputs:
    """One model, made of layers of others. Raises RecipeError for ranges that are none, or not one per checkpoint."""
    recorded, views = _open_models(recipe.refs, None, report)
    if len(recipe.layers) != len(views):
        raise RecipeError(
            f"{len(recipe.layers)} layer ranges for {len(views)} checkpoints", hint="give one --layers for each"
        )
    parts = [Part(view, *_range(text)) for view, text in zip(views, recipe.layers, strict=True)]
    stacked = Stacked(parts, reference=", ".join(recipe.refs), stack=recipe.stack)
    first = _model_of(views[0], recorded[0])
    model = cast(Checkpoint, Reconfigured(first, stacked.config))
    report(Told(f"{stacked.num_layers} layers of {stacked.stack}"))
    agreement = _as_stored(check_compatible([stacked]), [stacked])
    return MethodInputs(plan_soup(agreement, recorded, recipe, report, model=model), [stacked], False)


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)\s*[:-]\s*(\d+)\s*", text)
    if not match:
        raise RecipeError(f"layers {text!r}: expected START:STOP", hint="0:8 are the first eight layers")
    return int(match[1]), int(match[2])


def _open_models(
    references: Sequence[str], base: Checkpoint | None, report: Report
) -> tuple[list[Checkpoint], list[View]]:
    recorded: list[Checkpoint] = []
    views: list[View] = []
    for reference in references:
        path = Path(reference).expanduser()
        if is_adapter(path):
            adapter = open_adapter(path)
            under = base or _base_by_name(adapter.base_reference, reference)
            ranks = sorted({len(factors.a) for factors in adapter.changes.values()})
            ranked = f"{len(adapter.changes)} changes of rank {', '.join(map(str, ranks))}"
            report(Told(f"{reference}: {ranked}, merged into {under.reference} as it is read"))
            recorded.append(adapter.weights)
            views.append(Adapted(cast(Checkpoint, _plain(under)), adapter))
        else:
            opened = open_references([reference])
            recorded += opened
            views += map(_plain, opened)
    return recorded, views


def _base_by_name(name: str, reference: str) -> Checkpoint:
    try:
        return open_checkpoint(name)
    except ReferenceError as error:
        raise ReferenceError(
            f"{reference}: its base model {name!r} cannot be opened: {error.message}",
            hint="give the base that it was trained on: --base REF",
        ) from error


def _model_of(view: View, recorded: Checkpoint) -> Checkpoint:
    """Whose configuration and tokenizer describe a view."""
    source = view.source if isinstance(view, Resized) else view
    if isinstance(source, Adapted):
        return _model_of(source.base, getattr(source.base, "source", source.base))
    return cast(Checkpoint, Reconfigured(recorded, source.config)) if isinstance(source, Dequantized) else recorded


def _plain(checkpoint: Checkpoint) -> View:
    """The checkpoint, or what its quantized weights mean."""
    return Dequantized(checkpoint) if scales_of(checkpoint.slots) else checkpoint


def _as_stored(agreement: Agreement, views: Sequence[View]) -> Agreement:
    """Adapted tensors read as float32, but are written in the dtype of their base."""
    stored: list[Mapping[str, Slot]] = [getattr(view, "stored", None) or slots_of(view) for view in views]
    dtypes = {name: {slots[name].dtype for slots in stored} for name in agreement.slots}
    slots = {
        name: slot._replace(dtype=widest(dtypes[name])) if slot.dtype in FLOATING else slot
        for name, slot in agreement.slots.items()
    }
    mixed = tuple(name for name, kinds in dtypes.items() if len(kinds) > 1)
    return dataclasses.replace(agreement, slots=slots, mixed=mixed)
