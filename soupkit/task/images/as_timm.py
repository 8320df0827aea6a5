"""A CLIP classifier as a model of timm: the same tower, and one layer for projection and head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn

from soupkit.checkpoint.config.classifier import TOWER
from soupkit.errors import TaskError
from soupkit.jsons import Json, JsonView
from soupkit.task.classifier import Classifier
from soupkit.task.images.classifier import ClipClassifier
from soupkit.task.images.models import build, image_settings, write_config
from soupkit.task.spec import ModelSpec
from soupkit.task.weights import load_weights, to_numpy

WIDTHS = {512: "medium", 768: "base", 1024: "large", 1280: "huge", 1408: "giant", 1664: "gigantic"}
Configure = Callable[[Path], None]
TOLERANCE = 1e-4
"""Largest difference of the logits, as a share of the largest, that float32 weights may leave."""


def as_timm(spec: ModelSpec, model: ClipClassifier) -> tuple[torch.nn.Module, Configure]:
    """timm's model with the weights of a classifier, run to see that they agree, and what writes config.json.

    logits = s W Pᵀ x + b with the projection P [D, E] of the tower's last vector x: timm's head is s W Pᵀ,
    computed in float64. Raises TaskError where timm has no such model.
    """
    if model.form.normalize:
        raise TaskError(
            "the head takes features divided by their norm, and timm's models have no such step",
            hint="export --to state-dict; a head on plain features: finetune --head linear,normalize=false",
        )
    described = ModelSpec("timm", *_name_of(spec.config["model_cfg"]))
    built = build(described, num_classes=model.num_classes)
    tower = {f"{TOWER}.{name}": tensor for name, tensor in model.get_submodule(TOWER).state_dict().items()}
    load_weights(built, _renamed(tower, built) | _head(model))
    _check_same(model, built)
    names, settings = model.form.class_names, image_settings(model, spec)
    return built, lambda folder: write_config(described, built, folder, class_names=names, settings=settings)


def _name_of(config: JsonView) -> tuple[str, Json]:
    """timm's name and options of an image tower. Raises TaskError for one that timm has no plain form of."""
    import open_clip

    vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
    shape = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size")
    plain = asdict(open_clip.CLIPVisionCfg(**{name: getattr(vision, name) for name in shape}))
    other = [name for name, value in asdict(vision).items() if value != plain[name]]
    if other or not isinstance(vision.layers, int):
        raise TaskError(f"timm has no plain form of this image tower: {', '.join(other) or 'a ResNet'}")
    quick = "quickgelu_" if config.get("quick_gelu") else ""
    size = WIDTHS.get(vision.width)
    known = f"vit_{size}_patch{vision.patch_size}_clip_{quick}{vision.image_size}"
    if known in timm.list_models():
        return known, {}
    return f"vit_base_patch32_clip_{quick}224", {
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.width,
        "depth": vision.layers,
        "num_heads": vision.width // vision.head_width,
        "mlp_ratio": vision.mlp_ratio,
    }


def _renamed(tower: Mapping[str, torch.Tensor], built: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tower's tensors under timm's names, which timm itself gives them."""
    return {name: to_numpy(tensor) for name, tensor in checkpoint_filter_fn(dict(tower), built).items()}


def _head(model: ClipClassifier) -> dict[str, np.ndarray]:
    form: Classifier = model.form
    head, projection = model.classification_head, model.get_parameter(f"{TOWER}.proj")
    scale = model.get_parameter("logit_scale").double().exp() if form.logit_scale else 1.0
    weight = scale * (head.weight.double() @ projection.double().T)
    bias = head.bias if form.bias else torch.zeros(form.num_classes)
    return {"head.weight": to_numpy(weight.float()), "head.bias": to_numpy(bias)}


@torch.no_grad()
def _check_same(model: ClipClassifier, built: torch.nn.Module) -> None:
    size: tuple[int, int] = model.get_submodule(TOWER).image_size  # type: ignore[assignment]
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected, found = model(images), built(images)
    if not (expected - found).abs().max() <= TOLERANCE * expected.abs().max():
        raise TaskError(
            "timm's model of these weights computes something else", hint="please report the model"
        )
