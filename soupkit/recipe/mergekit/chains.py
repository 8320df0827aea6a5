"""What a parameter of a mergekit file comes to: a chain of conditions of which the first that fits counts.

mergekit looks under the model, then in its slice, then in the whole file, and takes the first condition whose
filter is in the tensor's name; then its default. Lists are gradients over the layers of the slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from soupkit.recipe.mergekit.methods import Parameter
from soupkit.recipe.mergekit.values import Condition, Setting, refuse, scalar

Number = float | bool | int


@dataclass(frozen=True)
class Rule:
    """A number or gradient for the tensors whose names hold a text; filter None: for all that is left."""

    filter: str | None
    value: Number | tuple[Number, ...]

    def at(self, depth: float) -> Number:
        """Its number at a depth from 0 (first layer of a slice) to 1 (last), linear between those of a
        gradient."""
        if not isinstance(self.value, tuple):
            return self.value
        place = depth * (len(self.value) - 1)
        lower = int(place)
        upper = min(lower + 1, len(self.value) - 1)
        return (1 - (place - lower)) * self.value[lower] + (place - lower) * self.value[upper]


@dataclass(frozen=True)
class Chain:
    """Rules, the first that fits counts; the last one fits all tensors unless soupkit's default is
    mergekit's."""

    rules: tuple[Rule, ...]

    @property
    def plain(self) -> Number | None:
        """The one number for all tensors; None where there are several, or a gradient."""
        one = len(self.rules) == 1 and self.rules[0].filter is None
        return self.rules[0].value if one and not isinstance(self.rules[0].value, tuple) else None

    @property
    def graded(self) -> bool:
        """Whether it depends on the layer."""
        return any(isinstance(rule.value, tuple) for rule in self.rules)

    def reversed(self) -> Iterable[Rule]:
        """The strongest last, as --set has them."""
        return self.rules[::-1]


def chain_of(
    name: str,
    parameter: Parameter,
    settings: Sequence[Setting | None],
    *,
    where: str,
    convert: Callable[[Number], Number],
) -> Chain:
    """The settings of a parameter, strongest first, as one chain that ends with what fits every tensor.

    Raises RecipeError for values of another type, and where a parameter that has no default is not given for
    some.
    """
    rules: list[Rule] = []
    for condition in (condition for setting in settings if setting is not None for condition in setting):
        rules.append(Rule(condition.filter, _typed(condition, name, parameter, where, convert)))
    ends = next((place for place, rule in enumerate(rules) if rule.filter is None), None)
    if ends is not None:
        return Chain(tuple(rules[: ends + 1]))
    if parameter.required:
        raise refuse(
            where,
            f"{name!r} is missing" + (" for the tensors that no filter names" if rules else ""),
            hint=f"add - value: … to its conditions, or {name} to the parameters of the file"
            if rules
            else None,
        )
    default = [] if parameter.default is None else [Rule(None, convert(parameter.default))]
    return Chain(tuple(rules + default))


def _typed(
    condition: Condition, name: str, parameter: Parameter, where: str, convert: Callable[[Number], Number]
) -> Number | tuple[Number, ...]:
    place = f"{where}: {name}"
    if not isinstance(condition.value, tuple):
        return convert(scalar(condition.value, parameter.kind, place))
    values = tuple(convert(scalar(value, parameter.kind, place)) for value in condition.value)
    if len(set(values)) == 1:
        return values[0]
    if parameter.kind != "number":
        raise refuse(
            place, f"a gradient of {parameter.kind}s", hint="say it by filters, or once for all layers"
        )
    return values
