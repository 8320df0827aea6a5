"""The averages that a recipe asks for, by the names of the folders that they are written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from soupkit.errors import RecipeError
from soupkit.jsons import Json
from soupkit.merge.running import Ema, PowerEma, Rule, Swa
from soupkit.recipe.averages import AveragingOptions
from soupkit.train.averaging import Averaging
from soupkit.train.live import Buffers


def averagings(
    recipe: AveragingOptions, source: nn.Module | Mapping[str, Tensor], *, epochs: int, updates_per_epoch: int
) -> dict[str, Averaging]:
    """ "ema", "swa" and "posthoc-SIGMA", as far as the recipe wants them, ready to be updated.

    Raises RecipeError for an average that would not begin before the end of so many updates.
    """
    rules = dict(average_rules(recipe, epochs=epochs, updates_per_epoch=updates_per_epoch))
    return {name: _averaging(recipe, source, name, rule) for name, rule in rules.items()}


def average_rules(
    recipe: AveragingOptions, *, epochs: int, updates_per_epoch: int
) -> Iterator[tuple[str, Rule]]:
    """The rules of those averages."""
    if recipe.ema_decay is not None:
        yield (
            "ema",
            Ema(
                recipe.ema_decay,
                every=recipe.ema_every,
                start=_before_the_end("ema_start", recipe.ema_start, epochs * updates_per_epoch),
                gamma=recipe.ema_gamma,
                power=recipe.ema_power,
            ),
        )
    if recipe.swa_start is not None:
        every = recipe.swa_every or updates_per_epoch
        start = swa_start(recipe, epochs=epochs, updates_per_epoch=updates_per_epoch)
        _before_the_end("swa_start + swa_every", start + every - 1, epochs * updates_per_epoch)
        yield "swa", Swa(start, every)
    for sigma in recipe.posthoc_sigma:
        yield posthoc_name(sigma), PowerEma.of_width(sigma)


def swa_start(recipe: AveragingOptions, *, epochs: int, updates_per_epoch: int) -> int:
    """The update after which SWA begins: the end of an epoch, and at least one epoch before the last."""
    assert recipe.swa_start is not None
    return min(round(recipe.swa_start * epochs), epochs - 1) * updates_per_epoch


def posthoc_name(sigma_rel: float) -> str:
    """What the average of that width is called."""
    return f"posthoc-{sigma_rel:g}"


def _averaging(
    recipe: AveragingOptions, source: nn.Module | Mapping[str, Tensor], name: str, rule: Rule
) -> Averaging:
    options: Json = {"asynchronous": recipe.average_async}
    if name == "ema":
        options |= {"ignore": recipe.ema_ignore, "switch_every": recipe.ema_switch_every}
    device = "cpu" if recipe.average_device == "cpu" else None
    return Averaging(source, rule, buffers=_buffers(recipe, name), device=device, **options)


def _buffers(recipe: AveragingOptions, name: str) -> Buffers:
    if recipe.average_buffers != "auto":
        return recipe.average_buffers
    return "refresh" if name == "swa" else "average"


def _before_the_end(name: str, update: int, num_updates: int) -> int:
    if update >= num_updates:
        raise RecipeError(
            f"{name} is update {update}, but training has only {num_updates}: nothing would be averaged",
            hint="begin earlier, or train for longer",
        )
    return update
