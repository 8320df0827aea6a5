"""Which entry of a configuration says how many layers a stack has: nested towers, encoders and decoders kept
apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy

from soupkit.errors import CompatibilityError
from soupkit.jsons import Json, JsonView

Config = Json
Path = tuple[str, ...]
NO_TOWERS = (
    "quantization_config", "id2label", "label2id", "rope_scaling", "rope_parameters", "task_specific_params",
    "pretrained_cfg", "preprocess_cfg", "auto_map", "generation_config",
)  # fmt: skip
"""Dictionaries of a configuration that describe no layers."""
_DEPTH = re.compile(
    r"(?:(?P<before>encoder|decoder)_)?(?:num_hidden_layers|n_layers?|num_layers|layers|depth|num_blocks|n_blocks)"
    r"|(?:num|n)_(?P<inside>encoder|decoder)_layers"
)
_KINDS = {
    "vision": ["vision", "visual", "vit", "image", "img"],
    "text": ["text", "language", "llm"],
    "audio": ["audio", "speech"],
    "qformer": ["qformer"],
}
_SIDES = {"encoder": ["encoder"], "decoder": ["decoder"]}
_PARTS = {"thinker": ["thinker"], "talker": ["talker"]}
_TIMM_WITH_DEPTH = re.compile(r"(vit|deit|deit3|flexivit)_")


def depth_entries(config: JsonView, stack: str, num_layers: int) -> tuple[Config, list[tuple[Path, str]]]:
    """The configuration with every implied number of layers written out, and (dictionary, key) of those of
    `stack`.

    No entries: nothing in it says a number of layers; a key "" stands for a list whose length says it. Raises
    CompatibilityError when it says another number than num_layers, or when towers of the same depth cannot be
    told apart by the stack's name.
    """
    full = _written_out(config, stack, num_layers)
    fitting = _preferred([each for each in _entries(full) if _may_mean(each, stack, full)], stack)
    equal = [each for each in fitting if _at(full, each[0])[each[1]] == num_layers]
    if fitting and not equal:
        path, key = fitting[0]
        raise CompatibilityError(
            f"config.json says that {'.'.join((*path, key))} is {_at(full, path)[key]}, but the weights have "
            f"{num_layers} layers under {stack!r}",
            hint="a model whose layers are shared, or stored apart (multi-token prediction), cannot be "
            "stacked",
        )
    if not fitting:
        return full, [
            (path, "") for path in _dictionaries(full) if _lists_layers(_at(full, path), num_layers)
        ][:1]
    return full, _of_one_tower(equal, stack)


def _lists_layers(config: Config, num_layers: int) -> bool:
    """Whether a list or word says of each layer what it is, and so how many there are (Nemotron-H)."""
    kinds = [config.get(key) for key in ("layers_block_type", "layer_types", "hybrid_override_pattern")]
    return any(isinstance(value, list | str) and len(value) == num_layers for value in kinds)


def _preferred(entries: list[tuple[Path, str]], stack: str) -> list[tuple[Path, str]]:
    """Those named like the stack; a stack that is named after no kind of input is of text."""
    wanted = _kind((stack,), _KINDS)
    kinds = (wanted,) if wanted else (None, "text")
    return [each for each in entries if _named(each, _KINDS) in kinds] or entries


def _written_out(config: JsonView, stack: str, num_layers: int) -> Config:
    """T5 without num_decoder_layers has as many as in the encoder; timm's transformers take their depth by
    name."""
    full = deepcopy(dict(config))
    for path in _dictionaries(full):
        each = _at(full, path)
        t5 = "t5" in str(each.get("model_type", "")) and isinstance(each.get("num_layers"), int)
        if t5 and each.get("num_decoder_layers") is None:
            each["num_decoder_layers"] = each["num_layers"]
    timm = "pretrained_cfg" in full and _TIMM_WITH_DEPTH.match(str(full.get("architecture")))
    if timm and stack == "blocks":  # without pretrained_cfg timm reads no model_args
        full["model_args"] = {"depth": num_layers, **(full.get("model_args") or {})}
    return full


def _dictionaries(config: JsonView, path: Path = ()) -> Iterator[Path]:
    yield path
    for key, value in config.items():
        if isinstance(value, dict) and key not in NO_TOWERS:
            yield from _dictionaries(value, (*path, key))


def _at(config: Config, path: Path) -> Config:
    for key in path:
        config = config[key]
    return config


def _entries(config: Config) -> list[tuple[Path, str]]:
    return [
        (path, key)
        for path in _dictionaries(config)
        for key, value in _at(config, path).items()
        if _DEPTH.fullmatch(key) and isinstance(value, int) and not isinstance(value, bool)
    ]


def has_depth(config: JsonView) -> bool:
    """Whether a dictionary says a number of layers: then it describes a tower of its own."""
    return any(_DEPTH.fullmatch(key) and isinstance(value, int) for key, value in config.items())


def has_two_sides(config: JsonView) -> bool:
    """Whether one dictionary says the depths of an encoder and of a decoder: lists in it may be of either."""
    sides = {
        "decoder" in key for key, value in config.items() if _DEPTH.fullmatch(key) and isinstance(value, int)
    }
    return len(sides) == 2


def _may_mean(entry: tuple[Path, str], stack: str, config: Config) -> bool:
    """Whether nothing in the names of a stack and of an entry says that they are of different towers."""
    for words in (_KINDS, _PARTS):
        own, wanted = _named(entry, words), _kind((stack,), words)
        if own and wanted and own != wanted:
            return False
    own, wanted = _side(entry, config), _kind((stack,), _SIDES)
    return not (own and wanted and own != wanted)


def _named(entry: tuple[Path, str], words: Mapping[str, list[str]]) -> str | None:
    return _kind((*entry[0], entry[1]), words)


def _kind(names: Path, words: Mapping[str, list[str]]) -> str | None:
    """What the first word of some names that says anything says."""
    for token in (token for name in names for token in re.split(r"[._\d]+", name)):
        for kind, known in words.items():
            if token in known:
                return kind
    return None


def _side(entry: tuple[Path, str], config: Config) -> str | None:
    """Encoder or decoder; a plain number of layers beside one of the decoder is the encoder's."""
    path, key = entry
    siblings = _at(config, path)
    match = _DEPTH.fullmatch(key)
    side = match and (match["before"] or match["inside"])
    if not side and any("decoder" in other and _DEPTH.fullmatch(other) for other in siblings):
        side = "encoder"
    return side or _kind(path, _SIDES)


def _of_one_tower(entries: list[tuple[Path, str]], stack: str) -> list[tuple[Path, str]]:
    """Entries of one dictionary, and of `NAME_dict`, the older copy that transformers lets win over NAME."""
    if len({tuple(name.removesuffix("_dict") for name in path) for path, _ in entries}) > 1:
        found = ", ".join(".".join((*path, key)) for path, key in entries)
        raise CompatibilityError(
            f"which of {found} in config.json counts the layers under {stack!r} is not clear",
            hint="soupkit stacks towers whose names tell them apart (vision, text, audio, encoder, decoder)",
        )
    return entries
