"""A merge by the table of methods, opened and checked: nothing is computed yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from soupkit.asked import Based, Informed, Seeded
from soupkit.checkpoint.checkpoint import Checkpoint
from soupkit.checkpoint.dtypes import FLOATING
from soupkit.checkpoint.header import Slot
from soupkit.checkpoint.reference import open_checkpoint
from soupkit.errors import RecipeError
from soupkit.events import Report
from soupkit.jsons import Json
from soupkit.merge.families.election import check_sum
from soupkit.merge.methods import MergeMethod, method_of
from soupkit.merge.per_tensor import Inputs, merge_tensors
from soupkit.merge.policy import Sink
from soupkit.merge.writer import Streamed, StreamOptions
from soupkit.recipe.method_options import BaseOptions, MethodRecipe
from soupkit.recipe.presets import settings_of
from soupkit.recipe.settings import Layers, Setting, check_matches, parse_settings, resolve
from soupkit.stages.methods.inputs import MethodInputs, open_inputs
from soupkit.stages.outputs.soup import Engine, Ingredients

Numbers = dict[str, list[float]]


@dataclass(frozen=True)
class MethodMerge:
    """A merge that is ready to run: everything is opened and checked. numbers: what every floating tensor
    takes."""

    method: MergeMethod
    inputs: MethodInputs
    statistics: Sequence[Checkpoint]
    numbers: Mapping[str, Numbers]
    seed: int

    @property
    def ingredients(self) -> Ingredients:
        """What is recorded, and what is written."""
        return self.inputs.ingredients

    def engine(self, slots: Mapping[str, Slot] | None = None) -> Engine:
        """What `write_soup` runs; with `slots`, on those tensors only."""
        inputs = Inputs(self.inputs.models, self.inputs.base, self.statistics)

        def run(sink: Sink, options: StreamOptions, advance: Callable[[int], None]) -> Streamed:
            streamed = merge_tensors(
                inputs,
                self.method,
                self.arguments,
                sink,
                slots=self.ingredients.plan.slots if slots is None else slots,
                seed=self.seed,
                options=options,
                advance=advance,
            )
            if slots is None:
                streamed.inputs = self.inputs.contents(streamed.inputs, options.threads)
            return streamed

        return run

    def arguments(self, name: str) -> Json:
        """What the method takes for a tensor."""
        return {key: _argument(self.method, key, values) for key, values in self.numbers[name].items()}


def with_inputs(recipe: MethodRecipe, references: Sequence[str]) -> MethodRecipe:
    """The recipe on other references: those of the checkpoints, and that of the base last where it has
    one."""
    if not isinstance(recipe, Based) or recipe.base is None:
        return dataclasses.replace(recipe, refs=tuple(references))
    return dataclasses.replace(recipe, refs=tuple(references[:-1]), base=references[-1])  # type: ignore[call-arg]


def open_merge(recipe: MethodRecipe, report: Report) -> MethodMerge:
    """Open and check the inputs, and every parameter of every tensor. Raises RecipeError, CompatibilityError,
    …"""
    method = method_of(type(recipe))
    inputs = open_inputs(recipe, report)
    num = len(inputs.models)
    check_number(method, num)
    statistics = [open_checkpoint(ref) for ref in (recipe.statistics if isinstance(recipe, Informed) else ())]
    if statistics and len(statistics) != num:
        raise RecipeError(
            f"{len(statistics)} files of statistics for {num} checkpoints", hint="give one for each"
        )
    references = inputs.names[:num]
    preset = settings_of(recipe.preset) if isinstance(recipe, BaseOptions) else ()
    if preset and not Layers.of(inputs.ingredients.plan.slots).last:
        raise RecipeError(
            "--preset lines grows with the layers, and no tensor's name has the number of one",
            hint="--lambda scales all tensors alike",
        )
    settings = parse_settings((*preset, *recipe.set), known=method.parameters, references=references)
    numbers = numbers_of(method, defaults_of(recipe, method, num), settings, inputs.ingredients)
    return MethodMerge(method, inputs, statistics, numbers, recipe.seed if isinstance(recipe, Seeded) else 0)


def check_number(method: MergeMethod, num: int) -> None:
    """Raise RecipeError when a method cannot take this many checkpoints."""
    least, most = method.inputs
    if num < least or (most is not None and num > most):
        expected = f"{least}" if most == least else f"{least} to {most}" if most else f"at least {least}"
        more = ", the base apart" if method.base != "none" else ""
        raise RecipeError(f"{method.name} takes {expected} checkpoints{more}; the references name {num}")


def defaults_of(recipe: MethodRecipe, method: MergeMethod, num: int) -> Numbers:
    """The recipe's value of every parameter: one number per checkpoint, or one. Raises RecipeError for other
    counts."""
    defaults = {}
    for name, parameter in method.parameters.items():
        value = getattr(recipe, "lambda_" if name == "lambda" else name)
        numbers = [float(item) for item in value] if isinstance(value, tuple) else [float(value)]
        if parameter.per_ingredient and len(numbers) not in (1, num):
            raise RecipeError(
                f"{name} has {len(numbers)} numbers for {num} checkpoints", hint="give one, or one for each"
            )
        defaults[name] = numbers * num if parameter.per_ingredient and len(numbers) == 1 else numbers
    return defaults


def numbers_of(
    method: MergeMethod, defaults: Numbers, settings: Sequence[Setting], ingredients: Ingredients
) -> dict[str, Numbers]:
    """The parameters of every floating tensor, checked. Raises RecipeError naming the tensor."""
    slots = ingredients.plan.slots
    check_matches(settings, slots)
    layers = Layers.of(slots)
    _check("", defaults, method)
    numbers = {}
    for name, slot in slots.items():
        if slot.dtype in FLOATING:
            numbers[name] = resolve(name, defaults, settings, layers) if settings else defaults
            if settings:
                _check(f"{name}: ", numbers[name], method)
    return numbers


def _check(where: str, numbers: Numbers, method: MergeMethod) -> None:
    if method.mean:
        check_sum(np.array(numbers["weight"]), f"{where}{method.name}")
    for parameter, values in numbers.items():
        for value in values:
            method.parameters[parameter].limits.check(f"{where}{parameter}", value)


def _argument(method: MergeMethod, name: str, values: Sequence[float]) -> Any:
    parameter = method.parameters[name]
    return np.array(values, np.float64) if parameter.per_ingredient else parameter.kind(values[0])
