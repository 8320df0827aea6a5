"""The text of a mergekit file → plain values, read as mergekit reads it: YAML 1.1 (PyYAML's), by itself."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from soupkit.errors import RecipeError
from soupkit.jsons import Json
from soupkit.recipe.steps import FAULTS

MOST_CHARACTERS = 1 << 18
MOST_VALUES = 10_000
MOST_DEPTH = 100
_OTHER_FILES = {
    "experts": (
        "a mixture of experts (mergekit-moe)",
        "soupkit merges dense models; build it with mergekit-moe",
    ),
    "gate_mode": (
        "a mixture of experts (mergekit-moe)",
        "soupkit merges dense models; build it with mergekit-moe",
    ),
    "genome": ("a search (mergekit-evolve)", "soupkit merge evolve searches coefficients"),
    "donor": ("a tokenizer transplant (mergekit-tokensurgeon)", "soupkit transplants no tokenizers"),
    "command": ("a recipe of soupkit", "soupkit run FILE"),
    "steps": ("a recipe of soupkit", "soupkit run FILE"),
}


def load_mergekit(text: str, *, where: str) -> Json:
    """The keys of a mergekit file. Raises RecipeError for anything that is not one YAML mapping with a
    merge_method."""
    if len(text) > MOST_CHARACTERS:
        raise RecipeError(f"{where}: is not a mergekit configuration: it has {len(text):,} characters")
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except FAULTS as error:
        raise RecipeError(f"{where}: is not valid YAML: {error or type(error).__name__}") from error
    if len(documents) > 1:
        raise RecipeError(
            f"{where}: holds {len(documents)} YAML documents (mergekit-multi)",
            hint="give each a file of its own; a soupkit recipe runs several steps in order: soupkit run",
        )
    config = documents[0] if documents else None
    _check_size(config, where=where)
    if not isinstance(config, dict):
        raise RecipeError(f"{where}: is not a mergekit configuration: it is no mapping of keys")
    if "merge_method" not in config:
        _refuse_other(config, where)
    return config


def _refuse_other(config: Mapping[object, object], where: str) -> None:
    for key, (what, hint) in _OTHER_FILES.items():
        if key in config:
            raise RecipeError(f"{where}: has no merge_method: it describes {what}", hint=hint)
    raise RecipeError(f"{where}: is not a mergekit configuration: it has no merge_method")


def _check_size(value: object, *, where: str) -> None:
    """YAML's anchors can make a value that holds itself, or one that is endless once it is written out."""
    todo, count = [(value, 0)], 0
    while todo:
        item, depth = todo.pop()
        inner = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        count += len(inner)
        if count > MOST_VALUES or depth > MOST_DEPTH:
            raise RecipeError(
                f"{where}: holds more than {MOST_VALUES} values, or lists in lists without an end",
                hint="does an anchor refer to itself?",
            )
        todo.extend((each, depth + 1) for each in inner)


class _Loader(yaml.SafeLoader):
    """PyYAML's own reading, in which no key may stand twice and merge keys (`<<`) cannot multiply without
    bound."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen: set[object] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice", key.start_mark
                )
            seen.add(name)
        super().flatten_mapping(node)
        merged = {}
        for (
            key,
            value,
        ) in node.value:  # a merge key brings what the mapping says itself as well: the later one counts
            merged[(key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)] = (key, value)
        node.value = list(merged.values())
