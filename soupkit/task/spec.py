"""What a checkpoint is the weights of: by name, or by the configuration that lies beside them."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from soupkit.checkpoint.source import Source, folder_of
from soupkit.errors import TaskError
from soupkit.jsons import Json, JsonView

TIMM_CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
_HEAD_OPTION = re.compile(r"(.*?),(normalize|bias|logit_scale)=([^,]*)")
_FORM = "timm:NAME[,key=value] or open_clip:NAME[,key=value]"


@dataclass(frozen=True)
class ModelSpec:
    """A model by name and options, or by the configuration that lies beside its weights.

    kwargs: options of the model; `img_size` is understood for every model. config: config.json or
    open_clip_config.json as it was read, {} when there is none. directory: where tokenizer files may lie.
    """

    library: Literal["timm", "open_clip"]
    name: str
    kwargs: JsonView = field(default_factory=dict)
    config: JsonView = field(default_factory=dict)
    directory: Path | None = field(default=None, compare=False)

    def to_json(self) -> Json:
        """What identifies the architecture, JSON-able."""
        return {
            "library": self.library,
            "name": self.name,
            "kwargs": dict(self.kwargs),
            "config": dict(self.config),
        }


def parse_model(text: str) -> ModelSpec:
    """Read `timm:resnet18,num_classes=10,img_size=32` or `open_clip:ViT-B-32`. Raises TaskError."""
    library, _, rest = text.partition(":")
    name, *options = _at_commas(rest)
    if library not in ("timm", "open_clip") or not name:
        raise TaskError(
            f"model {text!r} is not {_FORM}", hint="for example --model timm:resnet18,num_classes=10"
        )
    kwargs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.strip().isidentifier():
            raise TaskError(f"model {text!r}: {option!r} is not key=value")
        kwargs[key.strip()] = _literal(value.strip())
    return ModelSpec("timm" if library == "timm" else "open_clip", name.strip(), kwargs)


@dataclass(frozen=True)
class HeadSpec:
    """Which head a CLIP model is under: one that class names make, a learned one, or that of a file.

    options: `normalize`, `bias` and `logit_scale` of `soupkit.task.classifier.Classifier`.
    """

    kind: Literal["zero-shot", "linear", "file"]
    file: str = ""
    options: Mapping[str, bool] = field(default_factory=dict)


def parse_head(text: str) -> HeadSpec:
    """Read `zero-shot`, `linear,normalize=false` or `runs/a,bias=false`. Raises TaskError."""
    name, options = text, {}
    while match := _HEAD_OPTION.fullmatch(name):
        name, key, value = match.groups()
        if key in options or value not in ("true", "false"):
            raise TaskError(
                f"head {text!r}: {key}={value} is not {key}=true or {key}=false, once",
                hint="for example --head linear,normalize=false",
            )
        options[key] = value == "true"
    if not name:
        raise TaskError(f"head {text!r} names none", hint="--head zero-shot, linear, or a file")
    if name == "zero-shot":
        return HeadSpec("zero-shot", "", options)
    return HeadSpec("linear", "", options) if name == "linear" else HeadSpec("file", name, options)


def describe(checkpoint: Source | None, model: str | None) -> ModelSpec:
    """What `checkpoint` is: `model` where it is given, else the configuration beside the weights. Raises
    TaskError."""
    if model is not None:
        return parse_model(model)
    if checkpoint is None:
        raise TaskError("no model is named", hint=f"give --model {_FORM}")
    config, directory = checkpoint.config, folder_of(checkpoint)
    if "model_cfg" in config:
        return ModelSpec("open_clip", directory.name, {}, config, directory)
    if "architecture" in config:
        return ModelSpec("timm", config["architecture"], {}, config, directory)
    if "model_type" in config:
        raise TaskError(
            f"{checkpoint.reference}: a transformers model ({config['model_type']}) is merged but not "
            f"run by soupkit",
            hint="score it with a program of your own: --score-command 'python eval.py {checkpoint}'",
        )
    raise TaskError(
        f"{checkpoint.reference} does not say what model it is: no {TIMM_CONFIG} of timm, no "
        f"{OPEN_CLIP_CONFIG}",
        hint=f"give --model {_FORM}",
    )


def _at_commas(text: str) -> list[str]:
    """The parts between commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
