"""The configuration of a stack of layers: its depth, and what it says of each layer, taken along with the
layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NoReturn

from soupkit.checkpoint.config.depth import NO_TOWERS, Config, depth_entries, has_depth, has_two_sides
from soupkit.checkpoint.config.depth import Path as Keys
from soupkit.checkpoint.config.layer_rules import (
    BY_LAYER,
    BY_POSITION,
    DERIVED,
    FROM_THE_END,
    KEPT,
    MEMBERS,
    POSITIONAL,
    Rule,
    Values,
    list_rule,
    member_rule,
)
from soupkit.errors import CompatibilityError
from soupkit.jsons import JsonView

LETTERS = "hybrid_override_pattern"
"""A word with one letter per layer (Nemotron-H)."""
NOTHING: tuple[object, ...] = (None, False, 0, 1, -1, "", [], {})
"""Values of rules that leave all layers alike."""


FAULTS = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""What reading a rule raises where a value is of another kind than the rule's."""


@dataclass(frozen=True)
class Origin:
    """Layers start … stop − 1 of a model whose stack has `num_layers`, and what its configuration is."""

    config: JsonView
    num_layers: int
    start: int
    stop: int


def stacked_config(origins: Sequence[Origin], stack: str) -> tuple[Config, list[Values]]:
    """The first configuration, made that of the stack, and for each layer of each origin what tells it from
    others.

    Lists with an entry per layer and sets of layer numbers follow the layers, from the configuration of the
    model that each layer comes from; rules that no longer hold (every fourth layer, the first three) are
    written out as lists. The second result has for every origin and every layer of its model the values that
    were read of it, so that a caller can compare the tensors of layers that say the same. Raises
    CompatibilityError naming the key where soupkit does not know how, or does not know whether a key speaks
    of layers.
    """
    first = origins[0]
    if not first.config or (len(origins) == 1 and (first.start, first.stop) == (0, first.num_layers)):
        return deepcopy(dict(first.config)), [[()] * origin.num_layers for origin in origins]
    found = [depth_entries(origin.config, stack, origin.num_layers) for origin in origins]
    changed, entries = found[0]
    if not entries:
        raise CompatibilityError(
            f"config.json does not say how many layers there are under {stack!r}, in no key that "
            f"soupkit knows",
            hint="write it in (num_hidden_layers, …), or remove config.json and write that of the "
            "result yourself",
        )
    told: list[Values] = [[()] * origin.num_layers for origin in origins]
    for path in dict.fromkeys(path for path, _ in entries):
        owners = [_at(config, path) for config, _ in found]
        for keys in _sections(owners[0]):
            sections = [_at(owner, keys) for owner in owners]
            new = _at(_at(changed, path), keys)
            for key in (key for where, key in entries if key and where == path and not keys):
                new[key] = sum(origin.stop - origin.start for origin in origins)
            for part, rows in enumerate(_Section(sections, origins, stack).write(new)):
                told[part] = [(*before, *more) for before, more in zip(told[part], rows, strict=True)]
    _check_features(changed, origins, stack)
    return changed, told


def _at(config: JsonView, path: Keys) -> Config:
    for key in path:
        value = config.get(key)
        config = value if isinstance(value, dict) else {}
    return config  # type: ignore[return-value]


def _sections(owner: JsonView, keys: Keys = ()) -> Iterator[Keys]:
    """The dictionary that says the depth, and those inside it that speak of the same layers."""
    yield keys
    for key, value in owner.items():
        if (
            isinstance(value, dict)
            and key not in NO_TOWERS
            and not has_depth(value)
            and "model_type" not in value
        ):
            yield from _sections(value, (*keys, key))


@dataclass(frozen=True)
class _Section:
    """One dictionary of the configuration, of every origin; the first is that of the result."""

    configs: Sequence[JsonView]
    origins: Sequence[Origin]
    stack: str

    def write(self, new: Config) -> list[list[tuple[object, ...]]]:
        """Change `new`, the first, into that of the stack; the values of every rule for every layer of each
        origin."""
        _forget_last_stage(new, self.origins[0].num_layers)
        before, num = dict(new), len(self._layers)
        rules = [rule for rule in self._rules() if self._read(rule)]
        values = {rule.key: self._read(rule) for rule in rules}
        for rule in rules:
            wanted = [values[rule.key][part][layer] for part, layer in self._layers]  # type: ignore[index]
            try:
                if rule.read(new, num) != wanted:
                    new.update(rule.write(new, wanted))
                holds = rule.read(new, num) == wanted
            except FAULTS:
                holds = False
            if not holds:
                self._refuse(rule.key, before.get(rule.key))
        self._check_others(rules, before)
        return [
            [
                tuple(json.dumps(values[rule.key][part][layer]) for rule in rules)  # type: ignore[index]
                for layer in range(origin.num_layers)
            ]
            for part, origin in enumerate(self.origins)
        ]

    @property
    def _layers(self) -> list[tuple[int, int]]:
        """(origin, number there) of every layer of the stack."""
        return [
            (part, layer)
            for part, origin in enumerate(self.origins)
            for layer in range(origin.start, origin.stop)
        ]

    @property
    def _in_place(self) -> bool:
        """Whether every layer keeps its number: then rules that count from the first layer hold on."""
        return all(layer == number for number, (_, layer) in enumerate(self._layers))

    @property
    def _whole(self) -> bool:
        return self._in_place and len(self._layers) == self.origins[0].num_layers

    def _rules(self) -> list[Rule]:
        derived = {rule.key for rule in DERIVED}
        keys = dict.fromkeys(key for config in self.configs for key in config if key not in derived)
        rules = []
        for key in keys:
            values = [config.get(key) for config in self.configs]
            if key in MEMBERS or key == "moe_layers_enum":
                rules.append(member_rule(key))
            elif has_two_sides(self.configs[0]):
                continue
            elif key == LETTERS or (
                all(isinstance(value, list) for value in values) and BY_LAYER.fullmatch(key)
            ):
                rules.append(list_rule(key))
        return [*rules, *DERIVED]

    def _read(self, rule: Rule) -> list[Values] | None:
        """The values of a rule in every origin; None where no origin says any."""
        pairs = zip(self.configs, self.origins, strict=True)
        try:
            read = [rule.read(config, origin.num_layers) for config, origin in pairs]
        except FAULTS:
            self._refuse(
                rule.key, next((config[rule.key] for config in self.configs if rule.key in config), None)
            )
        if all(values is None for values in read):
            return None
        if any(values is None for values in read):
            self._refuse(rule.key, "not said by every checkpoint")
        return read  # type: ignore[return-value]

    def _check_others(self, rules: Sequence[Rule], before: JsonView) -> None:
        """Refuse what may speak of layers and is not understood, unless nothing changes for it."""
        known = {key for rule in rules for key in (rule.key, *rule.uses)}
        kind = before.get("model_type")
        if (
            isinstance(kind, str)
            and kind in BY_POSITION
            and not self._in_place
            and not {"layer_types", "layers_block_type"} & set(before)
        ):
            self._refuse("model_type", kind)
        for key, value in before.items():
            if key in known or has_depth({key: value}) or (value in NOTHING and value is not True):
                continue
            if isinstance(value, list):
                of_layers = (
                    BY_LAYER.fullmatch(key) or len(value) == self.origins[0].num_layers or _names_layers(key)
                )
                unclear = bool(of_layers) and not KEPT.fullmatch(key) and not self._whole
            else:
                holds = self._whole if FROM_THE_END.match(key) else self._in_place
                unused = key == "max_window_layers" and not before.get("use_sliding_window")
                unclear = bool(POSITIONAL.fullmatch(key)) and not holds and not unused
            if unclear:
                self._refuse(key, value)

    def _refuse(self, key: str, value: object) -> NoReturn:
        raise CompatibilityError(
            f"config.json: {key} ({_short(value)}) may say something of each layer under {self.stack!r} that "
            "soupkit does not know how to take along into a stack",
            hint="take the layers in their places (0:N of one model), or stack without config.json and write "
            "the result's yourself",
        )


def _forget_last_stage(config: Config, num_layers: int) -> None:
    """An image model that may serve as a backbone says that its output is its last stage, as it is when
    nothing is."""
    if config.get("out_indices") in ([num_layers], [-1]) and len(config.get("out_features") or [""]) == 1:
        for key in ("out_indices", "out_features", "stage_names"):
            config.pop(key, None)


def _names_layers(key: str) -> bool:
    """Whether a list's name says that it holds layer numbers."""
    words = set(key.split("_"))
    return bool(words & {"layer", "layers", "block", "blocks", "idx", "idxs", "index", "indices", "indexes"})


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _check_features(config: JsonView, origins: Sequence[Origin], stack: str) -> None:
    """Models that read a numbered layer of an image tower from outside it."""
    whole = len(origins) == 1 and (origins[0].start, origins[0].stop) == (0, origins[0].num_layers)
    for key in (
        "vision_feature_layer",
        "mm_vision_select_layer",
        "feature_layer",
        "out_indices",
        "out_features",
    ):
        value = config.get(key)
        numbers = value if isinstance(value, list) else [value]
        if value is not None and not whole and not (numbers == [-1] or numbers == [-2]) and "vi" in stack:
            raise CompatibilityError(
                f"config.json: {key} is {_short(value)}, layers of the image tower, which get other numbers",
                hint="stack the text tower, or take all layers of the image tower",
            )
