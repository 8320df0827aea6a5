"""The parameters of a mergekit file as options and --set settings of a soupkit command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from soupkit.jsons import Json
from soupkit.recipe.mergekit.chains import Chain, Number, chain_of
from soupkit.recipe.mergekit.file import MergekitFile, Slice
from soupkit.recipe.mergekit.methods import METHODS, Parameter
from soupkit.recipe.mergekit.values import Setting, refuse, scalar, shown
from soupkit.recipe.parse import suggestion

_NUMBERED = re.compile(r"(^|\.)[0-9]+(\.|$)")
"""What may be the number of a layer in a filter; that of `fc1` is not."""
MASK = "int8_mask"
"""Changes mergekit's memory, and no result of any method."""


def check_known(file: MergekitFile, where: str) -> None:
    """Raise RecipeError for a parameter that mergekit does not read where it stands."""
    own = METHODS[file.method].base == "ignored"
    _check_names(file.method, file.parameters, f"{where}: parameters", under_model=False)
    for each in file.slices:
        _check_names(file.method, each.parameters, f"{each.where}.parameters", under_model=False)
        for source in each.sources:
            inner = f"{each.where}: {shown(source.model.text)}"
            _check_names(file.method, source.parameters, inner, under_model=True)
            if not own and source.model == (each.base or file.base) and set(source.parameters) - {MASK}:
                name = next(name for name in source.parameters if name != MASK)
                raise refuse(
                    inner, f"{name!r} under base_model, where mergekit does not read it", hint="leave it out"
                )


def _check_names(method: str, found: Mapping[str, Setting], where: str, *, under_model: bool) -> None:
    known = METHODS[method].parameters
    for name, setting in found.items():
        if name == MASK:
            _check_mask(setting, where)
        elif name not in known:
            elsewhere = any(name in other.parameters for other in METHODS.values())
            raise refuse(
                where,
                f"the parameter {name!r} of {method}: mergekit does not read it either",
                hint="leave it out" if elsewhere else suggestion(name, {*known, MASK}),
            )
        elif under_model and not known[name].own:
            raise refuse(
                where,
                f"{name!r} under a model, where mergekit does not read it",
                hint="it is one for all models: write it under the parameters of the file",
            )


def _check_mask(setting: Setting, where: str) -> None:
    for condition in setting:
        for value in condition.value if isinstance(condition.value, tuple) else (condition.value,):
            scalar(value, "boolean", f"{where}: {MASK}")


class Parameters:
    """What every parameter comes to, for every slice and each of its sources."""

    def __init__(self, file: MergekitFile, slices: Sequence[Slice], where: str) -> None:
        self.file, self.slices, self.where = file, slices, where
        self.known = METHODS[file.method].parameters
        self.stacks = file.method == "passthrough"
        self.settings: list[str] = []
        self.notes: list[str] = []
        self.shared = {name: [self._chain(name, each) for each in slices] for name in self.known}
        self.own = {
            name: [[self._chain(name, each, place) for place in range(len(each.sources))] for each in slices]
            for name, parameter in self.known.items()
            if parameter.own
        }
        self._check()

    def is_plain(self, name: str) -> bool:
        """Whether a parameter is one number for all tensors."""
        return all(chain.plain is not None for chain in self.shared[name])

    def options(self, command: str) -> Json:
        """The options of the command; what differs from tensor to tensor is in `settings` afterwards."""
        found: Json = {}
        for name, parameter in self.known.items():
            ours = (
                "weight" if (parameter.ours, command) == ("coefficient", "merge linear") else parameter.ours
            )
            if ours:
                self._add(name, ours, parameter, found)
        if command == "merge weighted" and "coefficients" not in found:
            found["coefficients"] = [1.0] * len(self.slices[0].sources)
        return found

    # Chains

    def _chain(self, name: str, each: Slice, place: int | None = None) -> Chain:
        """The chain of a parameter in a slice: of one source, or of what is said for all."""
        parameter, setting = self.known[name], [each.parameters.get(name), self.file.parameters.get(name)]
        where = each.where
        if place is not None:
            setting.insert(0, each.sources[place].parameters.get(name))
            where = f"{each.where}: {shown(each.sources[place].model.text)}"
        elif parameter.own:
            parameter = replace(parameter, required=False)
        return chain_of(name, parameter, setting, where=where, convert=_converter(name, parameter.factor))

    def _given_own(self, name: str) -> bool:
        return any(name in source.parameters for each in self.slices for source in each.sources)

    # Options and settings

    def _add(self, name: str, ours: str, parameter: Parameter, found: Json) -> None:
        shared = self.shared[name]
        if not parameter.own:
            self._spread(ours, shared, None, found)
            if parameter.required:  # an option without a default; the settings say it for every tensor
                found.setdefault(ours, shared[0].rules[-1].at(0.0))
            return
        own = self.own[name]
        if self.stacks:
            chains = [chains[0] for chains in own]
            self._check_filters(name, chains)
            self._spread(ours, chains, None, found)
            return
        by_source = [list(chains) for chains in zip(*own, strict=True)]
        plain = [_one(chains) for chains in by_source]
        if self._given_own(name) and all(value is not None for value in plain):
            found["coefficients" if ours == "coefficient" else ours] = plain
        else:
            self._spread(ours, shared, None, found)
            for place, chains in enumerate(by_source):
                if chains != shared:
                    self._check_filters(name, chains)
                    self._spread(ours, chains, place, found)

    def _spread(self, ours: str, chains: Sequence[Chain], place: int | None, found: Json) -> None:
        """One chain per slice: the option where it is one number, settings for the rest."""
        if place is None and (one := _one(chains)) is not None:
            many = [one] * len(self.slices[0].sources)
            found["coefficients" if ours == "coefficient" else ours] = many if ours == "coefficient" else one
        elif len(set(chains)) == 1 and (len(chains) == 1 or not chains[0].graded):
            self._settings(ours, chains[0], place, "")
        elif any(chain.rules for chain in chains):
            self._settings(ours, chains[0], place, " @before?", depth=0.0)
            for chain, (first, depth) in zip(chains, self._offsets(), strict=True):
                if not chain.graded:
                    self._settings(ours, chain, place, f" @{first}-{first + depth - 1}?")
                else:
                    for layer in range(depth):
                        at = layer / (depth - 1) if depth > 1 else 1.0
                        self._settings(ours, chain, place, f" @{first + layer}?", depth=at)
            self._settings(ours, chains[-1], place, " @after?", depth=0.0)

    def _settings(
        self, ours: str, chain: Chain, place: int | None, at: str, *, depth: float | None = None
    ) -> None:
        for rule in chain.reversed():
            value: Any = rule.value if depth is None else rule.at(depth)
            value = list(value) if isinstance(value, tuple) else value
            pattern = "*" if rule.filter is None else f"*{rule.filter}*"
            self.settings.append(
                json.dumps({pattern + at: {ours: value if place is None else {place: value}}})
            )

    def _offsets(self) -> Iterator[tuple[int, int]]:
        """(first layer of the output, number of layers) of every slice."""
        first = 0
        for each in self.slices:
            depth = each.depth or 0
            yield first, depth
            first += depth

    def _check_filters(self, name: str, chains: Sequence[Chain]) -> None:
        """mergekit looks for filters under a model in that model's own names, soupkit in those of the
        output."""
        for each, chain, (first, _) in zip(self.slices, chains, self._offsets(), strict=True):
            moved = any(source.layers is not None and source.layers[0] != first for source in each.sources)
            numbered = [rule.filter for rule in chain.rules if rule.filter and _NUMBERED.search(rule.filter)]
            if moved and numbered:
                raise refuse(
                    f"{each.where}: {name}",
                    f"the filter {shown(numbered[0])} names a layer, and the slice moves layers to "
                    f"other numbers",
                    hint="make a slice of its own for that layer",
                )

    # What methods say of their parameters

    def _check(self) -> None:
        inert = [name for name, parameter in self.known.items() if not parameter.ours and name != MASK]
        for name in inert:
            chains = [*self.shared[name], *(chain for each in self.own.get(name, []) for chain in each)]
            values = [rule.value for chain in chains for rule in chain.rules]
            if values:
                self._check_inert(name, values)
        if self.file.method == "linear" or "epsilon" in self.known:
            self._check_numbers()

    def _check_inert(self, name: str, values: Sequence[object]) -> None:
        method, place = self.file.method, f"{self.where}: {name}"
        if method == "task_arithmetic":
            self.notes.append(f"{name} has no effect in task_arithmetic, in mergekit neither")
        elif name == "rescale" and any(values):
            raise refuse(
                place, f"soupkit's {method} does not rescale", hint="scale by lambda, or use dare_ties"
            )
        elif name == "nuslerp_row_wise" and any(values):
            if any(
                chain.plain is None or chain.plain for chain in self.shared["nuslerp_flatten"] if chain.rules
            ):
                raise refuse(place, "it rotates columns, soupkit rotates rows or whole tensors")
            self.notes.append(
                "nuslerp_row_wise has no effect while nuslerp_flatten is true, in mergekit neither"
            )
        elif name == "normalize_weights" and not all(values):
            weights = [_one(chains) for chains in zip(*self.own["weight"], strict=True)]
            if (
                any(weight is None for weight in weights)
                or abs(sum(map(float, filter(None, weights))) - 1) > 1e-9
            ):
                raise refuse(place, "weights that do not sum to one", hint="scale them so that they do")
        elif name == "eps" and any(abs(value) > 1e-6 for each in values for value in _several(each)):
            raise refuse(place, "soupkit computes without it; above 1e-6 it would change the result")

    def _spreads(self, position: int) -> Iterator[tuple[Chain, Chain]]:
        """(density, epsilon) of every source of a slice, for the methods that have both."""
        if "density" in self.own and "epsilon" in self.own:
            yield from zip(self.own["density"][position], self.own["epsilon"][position], strict=True)

    def _check_numbers(self) -> None:
        for position, each in enumerate(self.slices):
            if self.file.method == "linear":
                weights = [chain.plain for chain in self.own["weight"][position]]
                normalized = self.shared["normalize"][position].plain
                if normalized and None not in weights and sum(map(float, filter(None, weights))) == 0:
                    raise refuse(
                        each.where, "the weights sum to zero", hint="parameters: {normalize: false} adds them"
                    )
            for density, epsilon in self._spreads(position):
                if density.plain is not None and epsilon.plain is not None and density.plain < 1:
                    half = epsilon.plain / 2
                    if density.plain + half >= 1 or density.plain - half <= 0:
                        raise refuse(
                            each.where,
                            f"density {density.plain:g} and epsilon {half:g}: mergekit wants density ± "
                            "epsilon between 0 and 1",
                        )


def _converter(name: str, factor: float) -> Callable[[Number], Number]:
    """mergekit's epsilon of DELLA is half of the published spread, which soupkit takes; its flatten is the
    opposite of rows."""

    def convert(value: Number) -> Number:
        if factor != 1:
            return factor * value
        return not value if name == "nuslerp_flatten" else value

    return convert


def _one(chains: Sequence[Chain]) -> Number | None:
    """The one number of all slices and tensors; None where there are several."""
    return chains[0].plain if len(set(chains)) == 1 else None


def _several(value: object) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
