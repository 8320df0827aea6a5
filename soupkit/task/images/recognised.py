"""What the tensors of a CLIP classifier are the weights of: as it is told, or as their shapes tell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from soupkit.asked import Told
from soupkit.checkpoint.config.classifier import HEAD, SECTION, TOWER, head_shape, parts_of
from soupkit.errors import TaskError
from soupkit.jsons import Json, JsonView
from soupkit.task.classifier import Classifier
from soupkit.task.images.models import open_clip_config
from soupkit.task.spec import ModelSpec, parse_head, parse_model

Shapes = Mapping[str, Sequence[int]]
QUICK = "-quickgelu"


def classifier_of(shapes: Shapes, told: Told) -> ModelSpec:
    """The model of a classifier's tensors, under the names that a checkpoint gives them.

    Where `told` names no model, it is known by its shapes; `told.head` holds options of
    `soupkit.task.spec.parse_head`. Raises TaskError, CheckpointError where it cannot be known, or is none.
    """
    head = told.head
    num_classes, width = head_shape(shapes)
    asked = parse_head(f"linear,{head}" if head else "linear")
    if asked.kind != "linear" or "bias" in asked.options:
        raise TaskError(f"head is {head!r}, expected normalize=… and logit_scale=…", hint="normalize=false")
    spec = parse_model(told.model or f"open_clip:{recognised(shapes)}")
    config = open_clip_config(spec)
    if config["model_cfg"].get("embed_dim") != width:
        made = config["model_cfg"].get("embed_dim")
        raise TaskError(f"{HEAD}.weight is of {width} features, but {spec.name} makes {made}")
    form = Classifier(
        num_classes,
        width,
        bias=f"{HEAD}.bias" in shapes,
        class_names=told.class_names,
        parts=parts_of(shapes),
    )
    form = form.given(asked.options)
    form.check()
    return replace(spec, config=config | {SECTION: form.to_json()}, kwargs={})


def recognised(shapes: Shapes) -> str:
    """open_clip's name of the only architecture whose tensors have these shapes.

    Weights tell neither QuickGELU from GELU nor how many heads there are: where architectures of the same
    shapes compute in other ways, TaskError names them.
    """
    import open_clip

    fitting: dict[str, str] = {}
    for name in sorted(open_clip.list_models(), key=len):
        config: Json = open_clip.get_model_config(name) or {}
        if _may_fit(config, shapes) and _fits(config, shapes):
            fitting.setdefault(_computation(config), name)
    names = list(fitting.values())
    if len(names) == 1:
        return names[0]
    quick = next((name for name in names if QUICK in name), None)
    if not names:
        raise TaskError(
            "no image tower of open_clip has the shapes of these tensors",
            hint="name it: --model open_clip:NAME",
        )
    published = (
        f"open_clip:{quick} for what began as OpenAI's weights, as the files of model-soups and WiSE-FT"
    )
    raise TaskError(
        f"these shapes are those of {' and '.join(names)}, which compute in other ways",
        hint=f"name it: --model {published if quick else f'open_clip:{names[0]}'}",
    )


def _may_fit(config: JsonView, shapes: Shapes) -> bool:
    """By numbers alone, of towers that are open_clip's own."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if "timm_model_name" in vision or "hf_model_name" in text or not isinstance(vision.get("layers"), int):
        return False
    blocks = {name.split(".")[3] for name in shapes if name.startswith(f"{TOWER}.transformer.resblocks.")}
    side = vision.get("patch_size"), vision.get("width")
    kernel = shapes.get(f"{TOWER}.conv1.weight", (0, 0, 0, 0))
    told = (config.get("embed_dim"), vision["layers"], *side)
    return told == (head_shape(shapes)[1], len(blocks), kernel[2], kernel[0])


def _fits(config: JsonView, shapes: Shapes) -> bool:
    """Whether the model has every tensor, in its shape, and its whole image tower is there."""
    import open_clip

    known = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
    with torch.device("meta"):
        clip = open_clip.CLIP(**{key: config[key] for key in known if key in config})
    own = {name: tuple(tensor.shape) for name, tensor in clip.state_dict().items()}
    rest = {name: tuple(shape) for name, shape in shapes.items() if not name.startswith(f"{HEAD}.")}
    tower: Iterator[str] = (name for name in own if name.startswith(f"{TOWER}."))
    return all(own.get(name) == shape for name, shape in rest.items()) and all(name in rest for name in tower)


def _computation(config: JsonView) -> str:
    """What an image tower computes, whatever the text tower beside it."""
    return json.dumps([config["vision_cfg"], bool(config.get("quick_gelu"))], sort_keys=True)
