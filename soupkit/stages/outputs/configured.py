"""What follows converted weights: a strict load into the model that they are of, and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.config.classifier import published_prefix
from soupkit.checkpoint.header import Slot
from soupkit.errors import RecipeError, SoupkitError
from soupkit.recipe.hub import Convert

Finish = Callable[[Path], None]


def is_classifier(slots: Mapping[str, Slot], recipe: Convert) -> bool:
    """Whether tensors are an image tower of CLIP and a learned head."""
    return not (recipe.model or "").startswith("timm:") and published_prefix(slots) == ""


def finishers(opened: Sequence[tuple[str, Mapping[str, Slot]]], recipe: Convert) -> list[Finish]:
    """What follows the weights of each file; nothing where no model is told.

    Files of the same shapes share a model. Raises TaskError, naming the file, for what can be known before
    anything is written.
    """
    made: dict[str, Finish] = {}
    found: list[Finish] = []
    for reference, slots in opened:
        shapes = {n: slot.shape for n, slot in slots.items()} if is_classifier(slots, recipe) else None
        if shapes is None and (recipe.head or recipe.has_names):
            raise RecipeError(
                f"{reference}: has no classification_head beside an image tower of CLIP",
                hint="leave --head and --class-names out",
            )
        key = repr(shapes)
        if key not in made:
            try:
                made[key] = _finisher(recipe, shapes)
            except SoupkitError as error:
                raise type(error)(f"{reference}: {error.message}", hint=error.hint) from error
        found.append(made[key])
    return found


def _finisher(recipe: Convert, shapes: Mapping[str, tuple[int, ...]] | None) -> Finish:
    if recipe.model is None and shapes is None:
        return lambda _directory: None
    import soupkit.task.torchvision_ops  # noqa: F401  (before timm and open_clip)
    from soupkit.task.images.models import build, load_weights, write_config
    from soupkit.task.images.recognised import classifier_of
    from soupkit.task.spec import parse_model

    spec = classifier_of(shapes, recipe) if shapes is not None else parse_model(recipe.model or "")
    model = build(spec)

    def finish(directory: Path) -> None:
        load_weights(model, Checkpoint(directory))
        write_config(spec, model, directory)

    return finish
