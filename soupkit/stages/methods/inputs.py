"""From the references of a method's recipe to what is merged: checkpoints, adapters in their base, one
vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from soupkit.asked import Based
from soupkit.checkpoint.compatible import Agreement, check_compatible
from soupkit.checkpoint.dtypes import FLOATING, widest
from soupkit.checkpoint.hashing import content_hash
from soupkit.checkpoint.source import Source
from soupkit.checkpoint.views.resized import match_vocabularies
from soupkit.checkpoint.views.stacked import Part, Stacked
from soupkit.checkpoint.views.view import stored_slots
from soupkit.errors import RecipeError
from soupkit.events import Report, Told
from soupkit.recipe.method_options import MethodRecipe
from soupkit.recipe.methods.passthrough import MergePassthrough
from soupkit.stages.inputs.composed import (
    cut_layers,
    layer_range,
    model_of,
    open_config,
    open_models,
    stacked_model,
)
from soupkit.stages.outputs.soup import Ingredients, plan_soup


@dataclass(frozen=True)
class MethodInputs:
    """What a method merges and what is recorded of it; the base comes last in both where there is one.

    views: how they are read. names: what was referred to, in order, and groups: per name, the places of its
    checkpoints among those that are recorded.
    """

    ingredients: Ingredients
    views: Sequence[Source]
    has_base: bool
    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def models(self) -> Sequence[Source]:
        """What is merged."""
        return self.views[:-1] if self.has_base else self.views

    def contents(self, hashes: Sequence[str], threads: int) -> list[str]:
        """The content of everything recorded, of which `hashes` tells that of the views."""
        recorded = self.ingredients.checkpoints
        known = {id(view): found for view, found in zip(self.views, hashes, strict=True)}
        return [known.get(id(source)) or content_hash(source, threads=threads) for source in recorded]

    @property
    def base(self) -> Source | None:
        """What it is merged on."""
        return self.views[-1] if self.has_base else None


def open_inputs(recipe: MethodRecipe, report: Report) -> MethodInputs:
    """Open references and base, put adapters into their base, cut layers, settle vocabularies, check all of
    it, plan the output."""
    if isinstance(recipe, MergePassthrough) and recipe.layers:
        return _open_stacked(recipe, report)
    base = recipe.base or None if isinstance(recipe, Based) else None
    found = open_models(recipe.refs, base, report)
    cut = cut_layers(found.views, recipe.layers, recipe.stack)
    model = model_of(cut[0], found.recorded[found.groups[0][0]])
    views, chosen = match_vocabularies(cut, recipe.embedding)
    if chosen is not None:
        model = model_of(views[chosen], found.recorded[found.groups[chosen][0]])
        report(Told(f"vocabulary: {recipe.embedding} to that of {found.names[chosen]}"))
    if recipe.config_from is not None:
        model = open_config(recipe.config_from, found, cut[0])
    agreement = _as_stored(check_compatible(views, mismatch=recipe.mismatch), views)
    planned = plan_soup(agreement, found.recorded, recipe, report, model=model)
    return MethodInputs(planned, views, base is not None, tuple(found.names), tuple(found.groups))


def _open_stacked(recipe: MergePassthrough, report: Report) -> MethodInputs:
    """One model, made of layers of others. Raises RecipeError for ranges that are none, or not one per
    checkpoint."""
    found = open_models(recipe.refs, None, report)
    if len(recipe.layers) != len(found.views):
        raise RecipeError(
            f"{len(recipe.layers)} layer ranges for {len(found.views)} checkpoints",
            hint="give one --layers for each",
        )
    parts = [Part(view, *layer_range(text)) for view, text in zip(found.views, recipe.layers, strict=True)]
    stacked = Stacked(parts, reference=", ".join(recipe.refs), stack=recipe.stack)
    model = stacked_model(stacked, model_of(found.views[0], found.recorded[found.groups[0][0]]))
    if recipe.config_from is not None:
        model = open_config(recipe.config_from, found, stacked)
    report(Told(f"{stacked.num_layers} layers of {stacked.stack}"))
    agreement = _as_stored(check_compatible([stacked], mismatch=recipe.mismatch), [stacked])
    planned = plan_soup(agreement, found.recorded, recipe, report, model=model)
    return MethodInputs(planned, [stacked], False, tuple(found.names), tuple(found.groups))


def _as_stored(agreement: Agreement, views: Sequence[Source]) -> Agreement:
    """Adapted tensors read as float32, but are written in the dtype of their base."""
    stored = [stored_slots(view) for view in views]
    dtypes = {name: {slots[name].dtype for slots in stored} for name in agreement.slots}
    slots = {
        name: slot._replace(dtype=widest(dtypes[name])) if slot.dtype in FLOATING else slot
        for name, slot in agreement.slots.items()
    }
    mixed = tuple(name for name, kinds in dtypes.items() if len(kinds) > 1)
    return dataclasses.replace(agreement, slots=slots, mixed=mixed)
