"""Reads mergekit's YAML files and says the same in soupkit's recipes, for the methods that both have.

A mergekit file is a description, not code: `models` (or `slices`), `merge_method`, `base_model`, `parameters`, `dtype`.
What soupkit would do differently without saying so is refused; what it does differently on purpose is in `notes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soupkit.errors import RecipeError
from soupkit.recipe.mergekit_methods import METHODS
from soupkit.recipe.parse import suggestion
from soupkit.recipe.steps import load_yaml

DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "float64": "float64"}
IGNORED = ("int8_mask",)
"""Parameters that change mergekit's memory, not its result."""
KEYS = (
    "merge_method", "models", "slices", "base_model", "dtype", "out_dtype", "parameters", "tokenizer_source", "name",
    "tokenizer", "chat_template",
)  # fmt: skip


@dataclass(frozen=True)
class Translated:
    """A soupkit command with its options, and what will not be as in mergekit."""

    command: str
    options: dict[str, Any]
    notes: tuple[str, ...]


def translate(text: str, *, where: str, folder: Path | None = None) -> Translated:
    """Read a mergekit file. Raises RecipeError for what it is not, and for what soupkit does not do."""
    config = load_yaml(text, where=where)
    if not isinstance(config, dict) or "merge_method" not in config:
        raise RecipeError(f"{where}: is not a mergekit configuration: it has no merge_method")
    for key in config:
        if key not in KEYS:
            raise RecipeError(f"{where}: soupkit does not know the key {key!r}", hint=suggestion(str(key), KEYS))
    name = str(config["merge_method"])
    if name not in METHODS:
        raise RecipeError(f"{where}: soupkit has no merge method {name!r}", hint=suggestion(name, METHODS))
    return _Translation(config, name, where, folder).result()


class _Translation:
    """One file on its way: the sources in order, and the settings of every parameter."""

    def __init__(self, config: Mapping[str, Any], name: str, where: str, folder: Path | None) -> None:
        self.config, self.name, self.method = config, name, METHODS[name]
        self.where, self.folder = where, folder
        self.base = self._reference(config["base_model"]) if config.get("base_model") else None
        self.ranges: list[tuple[int, int]] = []
        self.sources = self._sources()
        self.settings: list[str] = []
        self.options: dict[str, Any] = {}

    def result(self) -> Translated:
        self._references()
        self._parameters()
        self._special()
        dtype = self.config.get("out_dtype") or self.config.get("dtype")
        if dtype is not None:
            if dtype not in DTYPES:
                self._refuse(f"dtype {dtype!r}", hint=suggestion(str(dtype), DTYPES))
            self.options["dtype"] = DTYPES[dtype]
        if self.settings:
            self.options["set"] = self.settings
        return Translated(self.method.command, self.options, (*self.method.notes, *self._tokenizer_notes()))

    # Which checkpoints

    def _sources(self) -> list[tuple[str, Mapping[str, Any]]]:
        """(reference, parameters) of every model, in order."""
        if ("models" in self.config) == ("slices" in self.config):
            self._refuse("expected either `models` or `slices`")
        if self.name == "passthrough" and "models" in self.config:
            self._refuse("passthrough without slices", hint="give slices with sources and layer_range")
        if "models" in self.config:
            return [self._source(entry) for entry in self.config["models"]]
        slices = self.config["slices"]
        if self.name == "passthrough":
            entries = [source for each in slices for source in each["sources"]]
            self.ranges = [tuple(entry["layer_range"]) for entry in entries]
        elif len(slices) == 1:
            entries = slices[0]["sources"]
            if any(list(entry["layer_range"]) != list(entries[0]["layer_range"]) for entry in entries):
                self._refuse("slices with different layer ranges", hint="cut the layers with `merge passthrough` first")
            self.ranges = [tuple(entries[0]["layer_range"])]
        else:
            self._refuse(f"{len(slices)} slices with {self.name}", hint="merge the models first, then stack layers")
        if any(each.get("parameters") for each in slices):
            self._refuse("parameters of a slice", hint="give them to its sources, or to the whole file")
        return [self._source(entry) for entry in entries]

    def _source(self, entry: Any) -> tuple[str, Mapping[str, Any]]:
        if not isinstance(entry, dict) or "model" not in entry:
            self._refuse(f"the model {entry!r}", hint="- model: PATH")
        return self._reference(entry["model"]), entry.get("parameters") or {}

    def _reference(self, value: Any) -> str:
        """A path or a Hub name; `model+adapter` is the adapter, which is merged into its base as it is read."""
        if isinstance(value, dict):
            inner = value.get("model", {})
            value = inner.get("path") if isinstance(inner, dict) else inner
        text = str(value)
        if "+" in text and not Path(text).exists():
            text = text.split("+", 1)[1]
        placed = self.folder / text if self.folder is not None else Path(text)
        return str(placed) if placed.exists() else text

    def _references(self) -> None:
        base, method = self.base, self.method
        references = [reference for reference, _ in self.sources]
        if method.on_base:
            self.sources = [source for source in self.sources if source[0] != base]
            references = [reference for reference, _ in self.sources]
            if base is None and self.name not in ("nuslerp", "multislerp"):
                self._refuse(f"{self.name} without base_model")
            if base is not None:
                self.options["base"] = base
        elif self.name in ("slerp", "arcee_fusion") and base is not None:
            others = [source for source in self.sources if source[0] != base]
            self.sources = [(base, {}), *others]
            references = [reference for reference, _ in self.sources]
        self.options["refs"] = references

    # What each takes

    def _parameters(self) -> None:
        shared = self.config.get("parameters") or {}
        known = {*self.method.parameters, *IGNORED, *SPECIAL.get(self.name, ())}
        for parameters in (shared, *(own for _, own in self.sources)):
            for name in parameters:
                if name not in known and name not in ("weight", "density", "normalize", "rescale"):
                    self._refuse(f"the parameter {name!r} of {self.name}", hint=suggestion(name, known))
        for theirs, ours in self.method.parameters.items():
            default = self.method.defaults.get(theirs)
            own = [parameters.get(theirs) for _, parameters in self.sources]
            if theirs in self.method.required and shared.get(theirs) is None and any(value is None for value in own):
                self._refuse(f"{theirs!r} is missing")
            self._parameter(theirs, ours, default, shared.get(theirs), own)

    def _parameter(self, theirs: str, ours: str, default: float | None, shared: Any, own: Sequence[Any]) -> None:
        """The option's plain value, and --set for filters, gradients and what one model says."""
        if self.name != "passthrough" and own and all(isinstance(value, int | float) for value in own):
            self._set_option(ours, [self._scaled(theirs, value) for value in own])
            return
        plain = shared if isinstance(shared, int | float) else default
        if plain is not None:
            self._set_option(ours, self._scaled(theirs, plain))
        for pattern, value in _conditions(shared):
            if value is not plain:
                self.settings.append(_setting(pattern, ours, self._scaled(theirs, value)))
        first = 0
        for position, setting in enumerate(own):
            place = ""
            if self.name == "passthrough":  # its one ingredient is the stack: what a source says, its layers take
                last = first + self.ranges[position][1] - self.ranges[position][0] - 1
                place, first = f" @{first}-{last}", last + 1
            for pattern, value in _conditions(setting):
                scaled = self._scaled(theirs, value)
                self.settings.append(_setting(pattern + place, ours, scaled if place else {position: scaled}))

    def _set_option(self, ours: str, value: Any) -> None:
        if ours == "coefficient":
            self.options["coefficients"] = value if isinstance(value, list) else [value] * len(self.sources)
        elif ours in ("normalize", "rescale", "rows"):
            self.options[ours] = bool(value)
        elif ours == "iterations":
            self.options[ours] = int(value)
        else:
            self.options[ours] = value

    def _scaled(self, theirs: str, value: Any) -> Any:
        """mergekit's epsilon is half of the published spread, which soupkit takes."""
        if isinstance(value, str):
            value = float(value)
        if theirs != "epsilon":
            return value
        return [2 * float(item) for item in value] if isinstance(value, list) else 2 * value

    def _special(self) -> None:
        """What single methods need."""
        if self.name == "linear" and "coefficients" not in self.options:
            self.options["coefficients"] = [1.0] * len(self.sources)
        if self.name == "passthrough":
            self.options["layers"] = [f"{start}:{stop}" for start, stop in self.ranges]
        shared = self.config.get("parameters") or {}
        if self.name == "nuslerp" and shared.get("nuslerp_flatten") is False:
            if shared.get("nuslerp_row_wise"):
                self._refuse("nuslerp_row_wise: it rotates columns, soupkit rotates rows or whole tensors")
            self.options["rows"] = True
        if self.name == "multislerp" and shared.get("normalize_weights") is False:
            self._refuse("normalize_weights: false", hint="scale the result with weights that sum to one")

    def _tokenizer_notes(self) -> Iterator[str]:
        source = self.config.get("tokenizer_source")
        if source == "union" or self.config.get("tokenizer"):
            self._refuse(
                "a tokenizer built from several", hint="--embedding pad or intersect match vocabularies by index"
            )
        if source or self.config.get("chat_template"):
            yield "tokenizer and templates are copied from the first model"
        if self.ranges and self.name != "passthrough":
            yield f"layer_range {list(self.ranges[0])} is taken to be all layers"

    def _refuse(self, what: str, *, hint: str | None = None) -> None:
        raise RecipeError(f"{self.where}: {what}: soupkit does not read this", hint=hint)


SPECIAL = {"nuslerp": ("nuslerp_flatten", "nuslerp_row_wise"), "multislerp": ("normalize_weights", "eps")}


def _conditions(setting: Any) -> Iterator[tuple[str, Any]]:
    """(pattern, value) of a setting, the strongest last: mergekit takes the first whose filter is in the name."""
    if setting is None:
        return
    conditional = isinstance(setting, list) and any(isinstance(item, dict) for item in setting)
    for item in reversed(setting) if conditional else [setting]:
        if isinstance(item, dict):
            filter = item.get("filter")
            yield ("*" if filter in (None, "*") else f"*{filter}*"), item.get("value")
        else:
            yield "*", item


def _setting(pattern: str, parameter: str, value: Any) -> str:
    return json.dumps({pattern: {parameter: value}})
