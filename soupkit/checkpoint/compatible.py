"""Can these checkpoints be merged with each other? Decided from headers alone, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.meaning import Mismatch, check_meaning
from soupkit.checkpoint.config.same_companions import check_companions
from soupkit.checkpoint.dtypes import FLOATING, Array, widest
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.quantized import refuse_quantized
from soupkit.checkpoint.source import config_of, name_of, slots_of, tied_names
from soupkit.checkpoint.views.stacked import Stacked
from soupkit.errors import CompatibilityError
from soupkit.jsons import Json

Ingredient = Mapping[str, Array]


@dataclass(frozen=True)
class Agreement:
    """What the ingredients have in common.

    slots: every tensor with its shape and the narrowest dtype that holds all ingredients' values.
    ties: {dropped name: kept name} for tensors tied in every ingredient; slots leaves the dropped ones out.
    mixed: names of tensors whose floating dtype differs between ingredients.
    remarks: what their configurations and tokenizers say differently, worth a warning.
    """

    slots: Mapping[str, Slot]
    ties: Mapping[str, str]
    mixed: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> Json:
        """What a manifest notes of it."""
        return {"remarks": list(self.remarks)} if self.remarks else {}


def check_compatible(ingredients: Sequence[Ingredient], *, mismatch: Mismatch = "error") -> Agreement:
    """Compare every ingredient with the first, once all hold weights and no codes.

    mismatch: whether configurations that give the same weights another meaning are an error or a remark.
    Raises CompatibilityError naming checkpoint, tensor and fix.
    """
    if not ingredients:
        raise CompatibilityError("nothing to merge: no checkpoint given")
    names = [name_of(ingredient, position) for position, ingredient in enumerate(ingredients)]
    refuse_quantized(ingredients)
    _check_distinct(ingredients, names)
    _check_architecture(ingredients, names)
    slots = [slots_of(ingredient) for ingredient in ingredients]
    for position in range(1, len(slots)):
        _check_keys(slots[0], slots[position], names[0], names[position])
        _check_tensors(slots[0], slots[position], names[0], names[position])
    ties = _common_ties(ingredients)
    dtypes = {name: {each[name].dtype for each in slots} for name in slots[0] if name not in ties}
    agreed = {name: Slot(widest(kinds), slots[0][name].shape) for name, kinds in dtypes.items()}
    mixed = tuple(name for name, kinds in dtypes.items() if len(kinds) > 1)
    return Agreement(agreed, ties, mixed, _remarks(ingredients, names, mismatch))


def _remarks(ingredients: Sequence[Ingredient], names: Sequence[str], mismatch: Mismatch) -> tuple[str, ...]:
    """What the configurations and companions say differently; of a stack, those of its layers' models."""
    parts = [ingredient.sources if isinstance(ingredient, Stacked) else [] for ingredient in ingredients]
    stacks = any(parts)
    if stacks:
        ingredients = [
            each for own, ingredient in zip(parts, ingredients, strict=True) for each in own or [ingredient]
        ]
        names = [name_of(each, position) for position, each in enumerate(ingredients)]
    configs = [config_of(each) for each in ingredients]
    known = [(config, name) for config, name in zip(configs, names, strict=True) if config]
    if len(known) < 2:
        return ()
    said = check_meaning(
        [config for config, _ in known], [name for _, name in known], mismatch=mismatch, by_layer=not stacks
    )
    return (*said, *check_companions(ingredients, mismatch=mismatch))


def _check_distinct(ingredients: Sequence[Ingredient], names: Sequence[str]) -> None:
    seen: dict[object, str] = {}
    for ingredient, name in zip(ingredients, names, strict=True):
        identity: object = id(ingredient)
        if isinstance(ingredient, Checkpoint):
            identity = tuple(file.resolve() for file in ingredient.files)
        if identity in seen:
            raise CompatibilityError(
                f"{name}: the same checkpoint as {seen[identity]}",
                hint="name it once; to give it more weight use `soupkit merge weighted`",
            )
        seen[identity] = name


def _check_architecture(ingredients: Sequence[Ingredient], names: Sequence[str]) -> None:
    """Weights of two architectures can agree in every shape and still mean different things."""
    seen: tuple[str, str] | None = None
    for ingredient, name in zip(ingredients, names, strict=True):
        kind = architecture(ingredient)
        if kind and seen and kind != seen[0]:
            raise CompatibilityError(
                f"{name}: is a {kind}, but {seen[1]} is a {seen[0]}",
                hint="merge checkpoints of one architecture; if they are the same model, make their "
                "config.json agree",
            )
        seen = seen or ((kind, name) if kind else None)


def architecture(ingredient: Ingredient) -> str:
    """What a checkpoint's configuration says it is; empty when it says nothing."""
    config = config_of(ingredient)
    if "model_cfg" in config:
        model = config["model_cfg"]
        vision = model.get("vision_cfg", {}) if isinstance(model, dict) else {}
        tower = vision.get("timm_model_name") if isinstance(vision, dict) else None
        return f"open_clip model with image tower {tower}" if tower else "open_clip model"
    classes = config.get("architectures") or []
    if isinstance(classes, list) and classes:
        return str(classes[0]).removeprefix("Flax").removeprefix("TF").replace("LLaMA", "Llama")
    return str(config.get("architecture") or config.get("model_type") or "").partition(".")[0]


def _check_keys(
    first: Mapping[str, Slot], other: Mapping[str, Slot], first_name: str, other_name: str
) -> None:
    missing, extra = sorted(first.keys() - other.keys()), sorted(other.keys() - first.keys())
    if not missing and not extra:
        return
    parts = [f"lacks {len(missing)} tensors of {first_name} (for example {missing[0]!r})"] if missing else []
    parts += [f"has {len(extra)} that {first_name} lacks (for example {extra[0]!r})"] if extra else []
    shared = len(first.keys() & other.keys())
    hint = (
        "they are different architectures"
        if shared < len(first) / 2
        else "leave it out, or save both the same way"
    )
    for longer, shorter, name in ((other, first, other_name), (first, other, first_name)):
        if prefix := _common_prefix(longer, shorter):
            hint = (
                f"the names of {name} are the same behind {prefix!r}, which some wrapper put there: "
                f"save it without"
            )
    raise CompatibilityError(
        f"{other_name}: {' and '.join(parts)}; {shared} of {len(first)} agree", hint=hint
    )


def _common_prefix(longer: Mapping[str, Slot], shorter: Mapping[str, Slot]) -> str | None:
    """What stands before every name of the one that the other has without it; None where there is no such
    thing."""
    name = min(longer, default="")
    places = [k + 1 for k, letter in enumerate(name) if letter == "."]
    whole = (name[:k] for k in places if name[k:] in shorter)
    return next((text for text in whole if {text + each for each in shorter} == set(longer)), None)


def _check_tensors(
    first: Mapping[str, Slot], other: Mapping[str, Slot], first_name: str, other_name: str
) -> None:
    for name, slot in first.items():
        if other[name].shape != slot.shape:
            raise CompatibilityError(
                f"{other_name}: tensor {name!r} has shape {list(other[name].shape)}, {first_name} has "
                f"{list(slot.shape)}",
                hint="merge checkpoints of one architecture with one head (the same classes or vocabulary)",
            )
        kinds = {slot.dtype, other[name].dtype}
        if len(kinds) > 1 and not kinds <= set(FLOATING):
            raise CompatibilityError(
                f"{other_name}: tensor {name!r} is {other[name].dtype}, {first_name} has {slot.dtype}",
                hint="floating dtypes may be mixed, others must agree; convert one of them",
            )


def _common_ties(ingredients: Sequence[Ingredient]) -> dict[str, str]:
    ties = [tied_names(ingredient) for ingredient in ingredients]
    return {name: kept for name, kept in ties[0].items() if all(each.get(name) == kept for each in ties[1:])}
