"""Small images: shown so large that a model's stem does not shrink them away."""

from __future__ import annotations

from torch import nn

from soupkit.errors import RecipeError
from soupkit.task.images.models import build, parse_model


def for_small_images(model: str) -> str:
    """The same model, for images enlarged by the stride of its stem: resnet18,img_size=32 →
    resnet18,img_size=128.

    The first stage then works at the images' own resolution, as after the stem with stride 1 and without
    pooling that is usual for CIFAR (He et al. 2016, arXiv:1512.03385, section 4.2), at the same cost but for
    the stem. The architecture stays timm's, so its checkpoints need nothing else to be loaded. Raises
    RecipeError.
    """
    spec = parse_model(model)
    size = spec.kwargs.get("img_size")
    if spec.library != "timm" or not isinstance(size, int):
        raise RecipeError(
            f"stem small needs a timm model and its img_size, not {model!r}", hint=f"{model},img_size=32"
        )
    stride = stem_stride(build(spec))
    return model.replace(f"img_size={size}", f"img_size={size * stride}")


def stem_stride(model: nn.Module) -> int:
    """How much a model shrinks images before its first stage: the strides of its first convolution and
    `maxpool`."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    stride = first.stride[0] if first is not None else 1
    pool = getattr(model, "maxpool", None)
    if not isinstance(pool, nn.Module):
        return stride
    inner = [
        module for module in pool.modules() if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.Conv2d)
    ]
    for module in inner:
        step = module.stride
        stride *= step if isinstance(step, int) else step[0]
    return stride
