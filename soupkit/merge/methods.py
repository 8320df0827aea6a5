"""The methods that need a function per tensor, as their recipes and functions declare them.

The functions are generators over the pieces of one tensor (see pieces.py); per_tensor.py does all the rest.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from soupkit.checkpoint.dtypes import Array
from soupkit.commands import methods
from soupkit.recipe.fields import Limits
from soupkit.recipe.method_options import MethodRecipe
from soupkit.recipe.parse import field_types

CITATION = re.compile(r"\(([^()\d]+ (?:19|20)\d\d)(?:, (arXiv|doi):([^\s,)]+))?[^()]*\)")
LINKS = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes, one for each ingredient or one for all, within limits."""

    limits: Limits
    kind: type
    per_ingredient: bool = False


@dataclass(frozen=True)
class MergeMethod:
    """One method of merging.

    function(pieces, **parameters) yields merged values: of weights, or of task vectors (weights minus base)
    where there is a base. It may ask for `draws`, and for per-ingredient `statistics` (pieces of the same
    shapes) or `grams` (whole arrays). pieces: "stratum" (any size), "row" (whole rows) or "tensor". inputs:
    least and most, without the base.
    """

    name: str
    function: Callable[..., Iterator[Array]]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    base: Literal["required", "optional", "none"] = "none"
    inputs: tuple[int, int | None] = (1, None)
    pieces: Literal["stratum", "row", "tensor"] = "stratum"

    @cached_property
    def asks(self) -> frozenset[str]:
        """What the function takes."""
        return frozenset(inspect.signature(self.function).parameters)

    @property
    def mean(self) -> bool:
        """Whether the weights are divided by their sum."""
        return any(parameter.limits.divides for parameter in self.parameters.values())

    @property
    def paper(self) -> str:
        """The first citation in the function's docstring."""
        found = CITATION.search(self._said)
        return found[1] if found else ""

    @property
    def link(self) -> str:
        """Where that paper is; empty when it is neither on arXiv nor under a DOI."""
        found = CITATION.search(self._said)
        return f"{LINKS[found[2]]}{found[3]}" if found and found[2] else ""

    @property
    def memory(self) -> str:
        """The peak memory that the function's docstring tells."""
        found = re.search(r"Memory: ([^.;]+)", self._said)
        return found[1] if found else ""

    @property
    def _said(self) -> str:
        return " ".join((self.function.__doc__ or "").split())


def method_of(recipe: type[MethodRecipe]) -> MergeMethod:
    """The method that a recipe declares; its options that the function takes are the parameters, and λ."""
    family = import_module(f"soupkit.merge.families.{recipe.FAMILY}")
    function = getattr(family, recipe.METHOD.replace("-", "_"))
    hints, asked = field_types(recipe), {*inspect.signature(function).parameters, "lambda"} - {"statistics"}
    parameters = {
        name: _parameter(hints[each.name], each.metadata["limits"])
        for each in dataclasses.fields(recipe)
        if (name := each.name.rstrip("_")) in asked
    }
    base = hints.get("base")
    needs: Literal["required", "optional", "none"] = (
        "none" if base is None else "optional" if NoneType in get_args(base) else "required"
    )
    return MergeMethod(recipe.METHOD, function, parameters, needs, recipe.INPUTS, recipe.PIECES)


def _parameter(hint: Any, limits: Limits) -> Parameter:
    if get_origin(hint) is tuple:
        return Parameter(limits, get_args(hint)[0], per_ingredient=True)
    return Parameter(Limits(0, 1) if hint is bool else limits, hint)


def all_methods() -> dict[str, MergeMethod]:
    """Every method by its name."""
    kinds = [command.recipe_type() for command in methods().values()]
    found = [method_of(kind) for kind in kinds if issubclass(kind, MethodRecipe)]
    return {method.name: method for method in found}
